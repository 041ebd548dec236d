"""Fenced registers: which tokens they may accept, and which they may refuse.

Laws: where the lock lies elsewhere, no token that is lower than one accepted before, and none is refused but for a higher one. In
the lock's own shard versions and the lock's log are one order: there a write is accepted under the token of a holder as of its
version, and who surely holds is not refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from chaos.checkers.lock_holds import CONFIRM, EXCLUSIVE, Facts, Hold
from chaos.history import Operation

HOLDER = "holder"
AT_HOME = (HOLDER, CONFIRM)
"""The modes of writes in the shard of their lock."""


def check_fences(facts: Facts) -> int:
    """How many writes were accepted under a token that could not be a holder's any more."""
    by_fence: dict[tuple[int, str], list[Operation]] = defaultdict(list)
    at_home: dict[str, list[Operation]] = defaultdict(list)
    for each in facts.operations:
        if each.f != "put" or each.asked is None or not each.asked.token:
            continue
        name = each.asked.name
        if each.asked.mode in AT_HOME:
            at_home[name].append(each)
        # Where a lock has several holders at once, each of them may write in the lock's own shard.
        if each.asked.mode not in AT_HOME or facts.modes(name) <= {EXCLUSIVE}:
            by_fence[each.shard or 0, name].append(each)
    stale: set[int] = set()
    for (_, name), writes in by_fence.items():
        stale |= _check_order(facts, name, writes)
    for name, writes in at_home.items():
        stale |= _check_holders(facts, name, writes)
    return len(stale)


def _check_order(facts: Facts, name: str, writes: Sequence[Operation]) -> set[int]:
    """Those that were accepted and must not have been, by their invocation."""
    stale: set[int] = set()
    highest: Operation | None = None
    for write in sorted(_accepted(writes), key=_version):
        if highest is not None and _token(write) < _token(highest):
            stale.add(write.invoked)
            text = f"{write.key} took {write.value!r} with token {_token(write)} after {highest.value!r} with {_token(highest)}"
            facts.problem("fence", name, text)
        else:
            highest = write
    for write in writes:
        done = write.completed or 0
        if not _refused(write) or (write.asked and write.asked.mode in AT_HOME):
            continue
        if not any(_token(other) > _token(write) and other.invoked < done for other in writes):
            facts.problem(
                "fence",
                name,
                f"{write.key} refused {write.value!r} with token {_token(write)}, the highest it was shown",
            )
    return stale


def _check_holders(facts: Facts, name: str, writes: Sequence[Operation]) -> set[int]:
    stale: set[int] = set()
    holds = {hold.token: hold for hold in facts.holds.get(name, ())}
    alone = sorted((hold.granted, hold.token) for hold in holds.values() if hold.mode == EXCLUSIVE)
    at, highest = 0, 0  # what was held exclusively before a version
    for write in sorted(_accepted(writes), key=_version):
        token, version = _token(write), _version(write)
        while at < len(alone) and alone[at][0] < version:
            highest = max(highest, alone[at][1])
            at += 1
        hold = holds.get(token)
        ended = _ended(facts, hold) if hold is not None else 0
        if 0 < ended < version:
            text = f"{write.key} took {write.value!r} at {version} with token {token}, whose hold had ended at {ended}"
        elif token < highest:
            text = (
                f"{write.key} took {write.value!r} at {version} with token {token}, after {highest} held it exclusively"
            )
        else:
            continue
        stale.add(write.invoked)
        facts.problem("fence", name, text)
    for write in writes:
        hold = holds.get(_token(write))
        if _refused(write) and hold is not None and _surely_held(facts, hold, write):
            facts.problem("fence", name, f"{write.key} refused {write.value!r} while {hold} was held")
    return stale


def _ended(facts: Facts, hold: Hold) -> int:
    """From which log index on it is surely over; 0 where nobody knows."""
    told = facts.after(hold) or facts.gone(hold)
    ends = [end for end in (hold.ended, told.log_index if told is not None else 0) if end]
    return min(ends, default=0)


def _surely_held(facts: Facts, hold: Hold, write: Operation) -> bool:
    done_ns = write.completed_ns or 0
    until_ns = facts.lives_until(hold.lease, hold.shard, write.invoked_ns)
    return hold.answered_ns < write.invoked_ns and done_ns < min(until_ns, hold.given_up_ns)


def _accepted(writes: Sequence[Operation]) -> list[Operation]:
    return [each for each in writes if each.type == "ok" and each.version]


def _refused(write: Operation) -> bool:
    return write.type == "fail" and write.error == "STALE_TOKEN"


def _version(write: Operation) -> int:
    return write.version or 0


def _token(write: Operation) -> int:
    assert write.asked is not None
    return write.asked.token
