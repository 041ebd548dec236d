"""The laws of locks, judged from what holders did and what the change feeds told.

    exclusive holds are disjoint in the log, and no holder believes in its lock when the next one has it; shared ones and those
    of a semaphore go together as far as they may
    tokens of a name rise with every grant; the fenced registers accept none that is lower than one they have accepted
    waiters are served in the order of the queue, or told why not
    a lease ends when its ttl has passed since its last renewal, never before

The registers are judged as key-value histories too: no acknowledged write may be lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from chaos.checkers import lock_queue
from chaos.checkers.availability import percentile
from chaos.checkers.lock_holds import (
    EXCLUSIVE,
    Facts,
    Problem,
    check_feed,
    check_overlaps,
    check_releases,
    check_tokens,
    expiry_ms,
)
from chaos.history import History, Operation

DRIFT = 0.1
"""How much faster than the truth a shard's time may run; of the header's `lease_drift_percent`, if it has one."""


HOLDER = "holder"
"""The mode of a write in the shard of its lock: there the token must be that of a present holder, too."""


class Expiry(msgspec.Struct):
    """Milliseconds from the end of a lease's last ttl until its lock was free or another's."""

    p50: float
    p99: float
    max: float


class LockFinding(msgspec.Struct):
    problems: list[Problem]
    acquisitions: int
    waiters: int
    names: int
    stale_tokens_accepted: int
    overlaps: int
    expiries: list[float]
    watched: bool
    """Whether the feed told anything: without it the log is not judged."""

    @property
    def expiry(self) -> Expiry | None:
        if not self.expiries:
            return None
        quantiles = (percentile(self.expiries, 0.5), percentile(self.expiries, 0.99), max(self.expiries))
        return Expiry(*(round(each, 1) for each in quantiles))


def check(history: History) -> LockFinding:
    """Everything that is wrong; what is not known convicts nobody."""
    drift = float(history.header.options.get("lease_drift_percent", DRIFT * 100)) / 100
    facts = Facts(history, drift)
    check_tokens(facts)
    check_feed(facts)
    check_releases(facts)
    overlaps = check_overlaps(facts)
    waiters = lock_queue.check(facts, drift)
    stale = check_fences(facts)
    return LockFinding(
        problems=facts.problems,
        acquisitions=sum(len(holds) for holds in facts.holds.values()),
        waiters=waiters,
        names=len({each.key for each in history.operations if each.f == "acquire"}),
        stale_tokens_accepted=stale,
        overlaps=overlaps,
        expiries=sorted(expiry_ms(facts)),
        watched=bool(facts.feed),
    )


def registers(history: History) -> History:
    """The fenced registers alone, as a key-value history."""
    operations = [each for each in history.operations if each.f in ("put", "get")]
    return History(history.header, operations, history.faults, history.end_ns)


def check_fences(facts: Facts) -> int:
    """How many writes were accepted under a token lower than one accepted before; a refusal needs a higher one, too."""
    by_fence: dict[tuple[int, str], list[Operation]] = defaultdict(list)
    for each in facts.operations:
        if each.f != "put" or each.asked is None or not each.asked.token:
            continue
        # Where a lock has several holders at once, each of them may write in the lock's own shard.
        if each.asked.mode != HOLDER or facts.modes(each.asked.name) <= {EXCLUSIVE}:
            by_fence[each.shard or 0, each.asked.name].append(each)
    stale = 0
    for (_, name), writes in by_fence.items():
        stale += _check_fence(facts, name, writes)
    return stale


def _check_fence(facts: Facts, name: str, writes: Sequence[Operation]) -> int:
    stale = 0
    highest: Operation | None = None
    accepted = [each for each in writes if each.type == "ok" and each.version]
    for write in sorted(accepted, key=lambda each: each.version or 0):
        if highest is not None and _token(write) < _token(highest):
            stale += 1
            text = f"{write.key} took {write.value!r} with token {_token(write)} after {highest.value!r} with {_token(highest)}"
            facts.problem("fence", name, text)
        else:
            highest = write
    for write in writes:
        done = write.completed or 0
        if write.type != "fail" or write.error != "STALE_TOKEN" or (write.asked and write.asked.mode == HOLDER):
            continue
        if not any(_token(other) > _token(write) and other.invoked < done for other in writes):
            facts.problem(
                "fence",
                name,
                f"{write.key} refused {write.value!r} with token {_token(write)}, the highest it was shown",
            )
    return stale


def _token(write: Operation) -> int:
    assert write.asked is not None
    return write.asked.token
