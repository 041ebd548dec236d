"""Is there one order of the operations that respects real time and explains every answer?

Wing and Gong's search over a doubly linked list of call and return entries, with Lowe's cache of (operations
linearised, state) already tried (Testing for linearizability, 2017). The object under test is a step function; a key is
one object, since linearizability is local (Herlihy and Wing, 1990): callers split by key first. The search is iterative
and bounded in steps: beyond the bound the verdict is `unknown`, which is never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from enum import StrEnum
from typing import NamedTuple

STEPS_MAX = 3_000_000
"""Candidates tried for one object before the search gives up."""


class Verdict(StrEnum):
    OK = "ok"
    VIOLATION = "violation"
    UNKNOWN = "unknown"


class Interval(NamedTuple):
    """When an operation was called and when it returned, as positions in one total order of events. `returned` is None
    for an unknown outcome: the operation may take effect at any time after its call, or never."""

    called: int
    returned: int | None


class Search(NamedTuple):
    verdict: Verdict
    steps: int
    blocked: int | None
    """On a violation, the operation whose return no order could pass: the history up to there is already wrong."""


Step = Callable[[Hashable, int], Hashable | None]
"""The state after operation `i` took effect in the given state; None where its answer contradicts that state."""


def search(intervals: Sequence[Interval], step: Step, initial: Hashable, steps_max: int = STEPS_MAX) -> Search:
    """Searches an order of all returned operations, and any of the others, that `step` accepts."""
    entries = _Entries(intervals)
    tried: set[tuple[int, Hashable]] = set()
    path: list[tuple[int, Hashable]] = []
    following, first = entries.following, entries.first
    state, linearised, steps, furthest, blocked = initial, 0, 0, -1, None
    pending = sum(interval.returned is not None for interval in intervals)
    entry = following[first]
    while pending:
        operation = entry >> 1
        if entry & 1:  # the return of an operation not yet linearised: the choices so far were wrong
            returned = intervals[operation].returned
            assert returned is not None
            if returned > furthest:
                furthest, blocked = returned, operation
            if not path:
                return Search(Verdict.VIOLATION, steps, blocked)
            operation, state = path.pop()
            linearised ^= 1 << operation
            pending += entries.restore(operation)
            entry = following[2 * operation]
            continue
        steps += 1
        if steps > steps_max:
            return Search(Verdict.UNKNOWN, steps, None)
        after = step(state, operation)
        if after is not None:
            reached = (linearised | 1 << operation, after)
            if reached not in tried:
                tried.add(reached)
                path.append((operation, state))
                linearised, state = reached
                pending -= entries.lift(operation)
                entry = following[first]
                continue
        entry = following[entry]
    return Search(Verdict.OK, steps, None)


class _Entries:
    """The linked list: entry 2i is the call of operation i, 2i + 1 its return (absent where the outcome is unknown)."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        moments = []
        for operation, (called, returned) in enumerate(intervals):
            moments.append((called, 2 * operation))
            if returned is not None:
                assert called < returned, "an operation returns after its call"
                moments.append((returned, 2 * operation + 1))
        moments.sort()
        self.first = 2 * len(intervals)
        self.following = [-1] * (self.first + 2)
        self.preceding = [-1] * (self.first + 2)
        self.returns = [interval.returned is not None for interval in intervals]
        last = self.first
        for _, entry in moments:
            self.following[last], self.preceding[entry] = entry, last
            last = entry
        self.following[last], self.preceding[self.first + 1] = self.first + 1, last

    def lift(self, operation: int) -> int:
        """Takes an operation out; the number of returns taken out with it."""
        self._unlink(2 * operation)
        if self.returns[operation]:
            self._unlink(2 * operation + 1)
            return 1
        return 0

    def restore(self, operation: int) -> int:
        """Undoes the last `lift`; the number of returns that came back."""
        back = self.returns[operation]
        if back:
            self._relink(2 * operation + 1)
        self._relink(2 * operation)
        return int(back)

    def _unlink(self, entry: int) -> None:
        before, after = self.preceding[entry], self.following[entry]
        self.following[before], self.preceding[after] = after, before

    def _relink(self, entry: int) -> None:
        before, after = self.preceding[entry], self.following[entry]
        self.following[before] = self.preceding[after] = entry
