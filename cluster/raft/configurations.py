"""The configurations that stand in a replica's log, by index: the last one is in force, committed or not (thesis, section 4.1).

The first is that of the applied index, so that a snapshot taken there can carry it; it came with the constructor, with a snapshot, or
from an entry applied since. Replacing a suffix of the log takes the configurations in it back.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry
from cluster.types import EntryKind

CONFIG = int(EntryKind.CONFIG)


class Configurations:
    """Index 0 for one that came without its entry."""

    __slots__ = ("stack",)

    def __init__(self, applied: Configuration) -> None:
        self.stack = [(0, applied)]

    @property
    def last(self) -> tuple[int, Configuration]:
        return self.stack[-1]

    @property
    def before_last(self) -> Configuration | None:
        """What rolling back the last one would bring back."""
        return self.stack[-2][1] if len(self.stack) > 1 else None

    @property
    def applied(self) -> Configuration:
        return self.stack[0][1]

    def appended(self, entries: Iterable[Entry]) -> bool:
        """Whether there was one among them. ValueError for a payload that is none."""
        found = False
        for entry in entries:
            if entry.kind == CONFIG:
                self.stack.append((entry.index, Configuration.decode(entry.payload)))
                found = True
        return found

    def replaced(self, first: int) -> bool:
        """The entries from `first` on are gone; whether there was one among them."""
        stack = self.stack
        count = len(stack)
        while stack[-1][0] >= first:
            stack.pop()
        return len(stack) < count

    def forget(self, applied_index: int) -> None:
        """What was in force before the applied index is not asked for any more."""
        stack = self.stack
        while len(stack) > 1 and stack[1][0] <= applied_index:
            del stack[0]

    def check_invariants(self, entries: Iterable[Entry], applied_index: int) -> None:
        """`entries` are those of the log above the applied index."""
        expected = [(each.index, Configuration.decode(each.payload)) for each in entries if each.kind == CONFIG]
        assert self.stack[1:] == expected and self.stack[0][0] <= applied_index, f"{self.stack}, {expected}"
