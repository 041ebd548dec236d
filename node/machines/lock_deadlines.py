"""What ends when: a queue of deadlines over things that end early or late.

Law: `earliest` is exact, whatever was renewed or dropped since; it is in memory only and rebuilt from the things themselves. Of
what is due at the same moment the order is that of the keys, the same on every replica.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Deadlines(Generic[K, V]):
    """Over `things`, the living, with `due_ms` to ask one of them. A thing that is put off is found at its old deadline and
    moved then, so that a renewal costs nothing here."""

    def __init__(self, things: dict[K, V], due_ms: Callable[[V], int]) -> None:
        self._things = things
        self._due_ms = due_ms
        self._heap: list[tuple[int, Any]] = []
        self.rebuild()

    def rebuild(self) -> None:
        self._heap = [(self._due_ms(thing), key) for key, thing in self._things.items()]
        heapify(self._heap)

    def push(self, key: K) -> None:
        """A new thing, or one whose deadline came nearer."""
        if len(self._heap) > 2 * len(self._things) + 64:  # most are gone: what waits a day must not stay for it
            self.rebuild()
        else:
            heappush(self._heap, (self._due_ms(self._things[key]), key))

    def earliest(self) -> tuple[int, K] | None:
        heap = self._heap
        while heap:
            told_ms, key = heap[0]
            thing = self._things.get(key)
            if thing is None:
                heappop(heap)
                continue
            actual_ms = self._due_ms(thing)
            if actual_ms == told_ms:
                return told_ms, key
            heapreplace(heap, (actual_ms, key))
        return None

    def due(self, now_ms: int) -> bool:
        # The first look is a lower bound of all and free.
        if not self._heap or self._heap[0][0] > now_ms:
            return False
        first = self.earliest()
        return first is not None and first[0] <= now_ms
