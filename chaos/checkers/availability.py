"""How long was each shard without service after a kill, or around a clean restart?

Per kill and shard: from the last ok before the kill to the first ok after it of an operation that was also called after
it. An answer to an older call does not end the outage, since it may have been on its way when the node died; so
the figure is never too small.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from chaos.history import Event, Operation

KILL = "kill"
ROLL = "roll"
"""A clean restart, which begins when it is on file."""


class Outage(NamedTuple):
    shard: int
    node: str
    killed_ns: int
    from_ns: int
    to_ns: int

    @property
    def milliseconds(self) -> float:
        return (self.to_ns - self.from_ns) / 1e6


def kills(faults: Iterable[Event]) -> list[Event]:
    """What took a node away: the kills that were carried out, and the clean restarts from their beginning."""
    return [event for event in faults if (event.f, event.type) in ((KILL, "ok"), (ROLL, "invoke"))]


def outages(operations: Iterable[Operation], faults: Iterable[Event], end_ns: int) -> list[Outage]:
    """One for each kill and each shard that has operations. A shard that never answered again counts to the end of the
    history, one that had not answered before counts from its start."""
    answered: dict[int, list[tuple[int, int]]] = defaultdict(list)
    called: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for operation in operations:
        if operation.type == "ok" and operation.shard is not None and operation.completed_ns is not None:
            answered[operation.shard].append((operation.completed_ns, operation.invoked_ns))
            called[operation.shard].append((operation.invoked_ns, operation.completed_ns))
    found = []
    for shard, answers in sorted(answered.items()):
        answers.sort()
        calls = _with_earliest_answer(sorted(called[shard]), end_ns)
        for kill in kills(faults):
            before = bisect_left(answers, (kill.time, -1))
            after = bisect_left(calls, (kill.time, -1))
            start = answers[before - 1][0] if before else 0
            end = calls[after][1] if after < len(calls) else end_ns
            found.append(Outage(shard, kill.node or "?", kill.time, start, end))
    return found


def _with_earliest_answer(calls: list[tuple[int, int]], end_ns: int) -> list[tuple[int, int]]:
    """For each call, the earliest answer among it and all later calls."""
    earliest, result = end_ns, []
    for invoked, completed in reversed(calls):
        earliest = min(earliest, completed)
        result.append((invoked, earliest))
    return result[::-1]


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
