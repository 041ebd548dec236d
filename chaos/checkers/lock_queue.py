"""Waiters of a lock: served in the order of the queue, or told why not.

A place in the queue is a log index, known where the attempt was asked once and answered. Whoever stands behind another is granted
later; nobody waits for a lock that is free; nobody is told that its time is over, or its lease lost, before that can be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chaos.checkers.lock_holds import EXCLUSIVE, NEVER_NS, Facts, Point, ends
from chaos.history import Operation

TOLD = ("TIMED_OUT", "LOST", "CANCELLED", "DEADLOCK")


class Attempt(NamedTuple):
    """`place` in the queue, `token` (0: never granted as far as anybody knows), `granted` at that log index. An attempt that was never granted waited
    surely up to log index `told` or up to `until_ns`."""

    asked: Operation
    place: int
    waited: bool
    token: int
    granted: int
    known_ns: int
    told: int
    until_ns: int

    def __str__(self) -> str:
        facts = self.asked.asked
        assert facts is not None
        return f"attempt {facts.attempt} of lease {facts.lease:x}"

    @property
    def perhaps_granted(self) -> bool:
        """Its grant may have been lost on the way, if nobody said that it waited to the end."""
        return not self.told or self.asked.error == "LOST"

    def conflicts(self, other: Attempt) -> bool:
        assert self.asked.asked is not None and other.asked.asked is not None
        return EXCLUSIVE in (self.asked.asked.mode, other.asked.asked.mode)

    def waits_at(self, index: int, ns: int) -> bool:
        """Surely, when that index was applied, which was before `ns`."""
        return self.place < index and (index < self.told or ns < self.until_ns)


def check(facts: Facts, drift: float) -> int:
    """How many waiters were judged."""
    by_name: dict[str, list[list[Operation]]] = defaultdict(list)
    for operations in _by_attempt(facts.operations):
        by_name[operations[0].key].append(operations)
    waited = 0
    for name, those in by_name.items():
        attempts = [attempt for each in those if (attempt := _attempt(facts, each, drift)) is not None]
        attempts.sort(key=lambda attempt: attempt.place)
        waited += sum(attempt.waited for attempt in attempts)
        _check_order(facts, name, attempts)
        _check_passed(facts, name, attempts)
        _check_free(facts, name, attempts)
    _check_told(facts, drift)
    return waited


def _by_attempt(operations: Iterable[Operation]) -> Iterable[list[Operation]]:
    found: dict[tuple[str, int, int], list[Operation]] = defaultdict(list)
    for each in operations:
        if each.f == "acquire" and each.asked is not None and not each.asked.reentrant:  # which passes the queue
            found[each.key, each.asked.lease, each.asked.attempt].append(each)
    return found.values()


def _attempt(facts: Facts, operations: Sequence[Operation], drift: float) -> Attempt | None:
    """None where its place is not known: a first question nobody saw answered may have been the one that counts."""
    first = operations[0]
    asked, told = first.asked, first.told
    assert asked is not None
    if told is None or not (told.queued or (first.type == "ok" and told.index)):
        return None
    granted = next((each for each in operations if each.type == "ok" and each.told is not None), None)
    if granted is not None:
        assert granted.told is not None
        at = told.index if first.type == "ok" else granted.told.token
        known_ns = granted.completed_ns or NEVER_NS
        return Attempt(first, told.queued or at, told.queued > 0, granted.told.token, at, known_ns, 0, 0)
    forced_ns = facts.forced_ns(first.key, first.invoked_ns)  # it may have been granted, unheard, and taken away
    index = told.index if first.type == "fail" and first.error in TOLD and forced_ns == NEVER_NS else 0
    until_ns = min(
        forced_ns,
        first.invoked_ns + int(asked.wait_ms * 1e6 * (1 - drift)),
        max((each.until_ns for each in facts.renewals[asked.lease, first.shard or 0]), default=0),
        min(
            (each.invoked_ns for each in facts.ends[asked.lease, first.shard or 0] if _concerns(each, first)),
            default=NEVER_NS,
        ),
        first.completed_ns if first.type == "fail" and first.completed_ns is not None else NEVER_NS,
    )
    return Attempt(first, told.queued, True, 0, 0, NEVER_NS, index, until_ns)


def _concerns(end: Operation, acquire: Operation) -> bool:
    if end.invoked_ns < acquire.invoked_ns:
        return False
    assert acquire.asked is not None
    return ends(end, acquire.key, acquire.asked.attempt)


def _check_order(facts: Facts, name: str, attempts: Sequence[Attempt]) -> None:
    latest: Attempt | None = None
    for attempt in attempts:
        if not attempt.token:
            continue
        if latest is not None and attempt.token < latest.token and attempt.place > latest.place:
            text = f"{attempt}, queued at {attempt.place}, was granted {attempt.token} before {latest}, queued at {latest.place}"
            facts.problem("queue", name, text)
        if latest is None or attempt.token > latest.token:
            latest = attempt


def _check_passed(facts: Facts, name: str, attempts: Sequence[Attempt]) -> None:
    """Who was never granted while somebody behind was."""
    granted = [attempt for attempt in attempts if attempt.token]
    for attempt in attempts:
        if attempt.token:
            continue
        for other in granted:
            if other.place <= attempt.place or (attempt.perhaps_granted and not attempt.conflicts(other)):
                continue
            if attempt.waits_at(other.granted, other.known_ns):
                text = f"{attempt}, queued at {attempt.place}, still waited when {other}, queued at {other.place}, was granted"
                facts.problem("queue", name, text)
                break


def _check_free(facts: Facts, name: str, attempts: Sequence[Attempt]) -> None:
    """Who waited while the feed told that nobody holds the lock."""
    free = _open(facts, name)
    if not free:
        return
    for attempt in attempts:
        if not attempt.waited:
            continue
        bad = next((point for point in free if _waits_in_vain(attempt, point)), None)
        if bad is not None:
            facts.problem(
                "queue",
                name,
                f"{attempt}, queued at {attempt.place}, still waited when the lock was free at {bad.log_index}",
            )


def _open(facts: Facts, name: str) -> list[Point]:
    """Where the feed tells that anybody could have it. After a hold with a delay it may be closed for a while."""
    points = facts.feed.get(name, ())
    delayed = facts.delayed[name]
    if delayed and facts.modes(name) != {EXCLUSIVE}:
        return []  # the feed does not tell who of several went last
    if not delayed:
        return [point for point in points if not point.lease]
    found = []
    last: Point | None = None  # who held it
    for point in points:
        if point.lease:
            last = point
        elif (
            last is not None and last.log_index > facts.whole_after(name) and (last.lease, last.attempt) not in delayed
        ):
            found.append(point)
    return found


def _waits_in_vain(attempt: Attempt, point: Point) -> bool:
    if attempt.token:
        return attempt.place < point.log_index < attempt.granted
    return attempt.waits_at(point.log_index, point.ns)


def _check_told(facts: Facts, drift: float) -> None:
    """Nobody is told an end that cannot be yet."""
    for each in facts.operations:
        if each.f != "acquire" or each.asked is None:
            continue
        if each.type != "fail":
            continue
        done_ns = each.completed_ns or NEVER_NS
        if each.error == "TIMED_OUT" and done_ns < each.invoked_ns + int(each.asked.wait_ms * 1e6 * (1 - drift)):
            facts.problem(
                "queue", each.key, f"attempt {each.asked.attempt} of lease {each.asked.lease:x} timed out too early"
            )
        if each.error == "LOST":
            renewals = facts.renewals[each.asked.lease, each.shard or 0]
            until_ns = max(
                (one.until_ns for one in renewals if one.f == "renew" and one.completed_ns < done_ns), default=0
            )
            ended = any(
                end.invoked_ns < done_ns for end in facts.ends[each.asked.lease, each.shard or 0] if end.f != "release"
            )
            ended = ended or facts.forced_ns(each.key, each.invoked_ns) < done_ns
            if done_ns < until_ns and not ended:
                facts.problem("early", each.key, f"lease {each.asked.lease:x} was lost to a waiter before it could be")
