"""The laws of locks, judged from what holders did and what the change feeds told.

    exclusive holds are disjoint in the log, and no holder believes in its lock when the next one has it; shared ones and those
    of a semaphore go together as far as they may
    tokens of a name rise with every grant; the fenced registers accept none that is lower than one they have accepted, and in the
    lock's own shard that of a present holder alone, and always
    waiters are served in the order of the queue, or told why not; a deadlock is a cycle of those who wait
    a lease ends when its ttl has passed since its last renewal, never before

The registers are judged as key-value histories too: no acknowledged write may be lost.
"""

from __future__ import annotations

import msgspec

from chaos.checkers import lock_queue
from chaos.checkers.availability import percentile
from chaos.checkers.lock_deadlocks import check_deadlocks
from chaos.checkers.lock_fences import check_fences
from chaos.checkers.lock_holds import (
    Facts,
    Problem,
    check_feed,
    check_overlaps,
    check_releases,
    check_renewals,
    check_tokens,
    expiry_ms,
)
from chaos.history import History

DRIFT = 0.1
"""How much faster than the truth a shard's time may run; of the header's `lease_drift_percent`, if it has one."""


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
    check_renewals(facts)
    check_releases(facts)
    check_deadlocks(facts)
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
