"""The log of one replica in memory: the entries above a base, the last index that a snapshot covers.

Three marks cut it: base <= persisted <= handed <= last. Up to `handed` the entries were given to the driver to write,
up to `persisted` they are fsynced. Replacing a suffix (paper, section 5.3) takes the marks back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from cluster.raft.messages import Entry

ENTRY_BYTES = 32  # counted for each entry besides its payload, so that empty ones are bounded too


def entry_bytes(entry: Entry) -> int:
    return len(entry.payload) + ENTRY_BYTES


def _term(entry: Entry) -> int:
    return entry.term


class RaftLog:
    """Entries given to the constructor are durable: they were read from disk."""

    __slots__ = ("_entries", "base_index", "base_term", "bytes", "handed_index", "last_index", "persisted_index")

    def __init__(self, base_index: int = 0, base_term: int = 0, entries: Iterable[Entry] = ()) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self._entries = list(entries)
        self.last_index = base_index + len(self._entries)
        self.handed_index = self.persisted_index = self.last_index
        self.bytes = sum(map(entry_bytes, self._entries))
        self.check_invariants()

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    def term_at(self, index: int) -> int | None:
        """None below the base and above the end."""
        offset = index - self.base_index
        if offset > 0:
            return self._entries[offset - 1].term if index <= self.last_index else None
        return self.base_term if offset == 0 else None

    def entry_at(self, index: int) -> Entry:
        """An entry in (base, last]."""
        assert self.base_index < index <= self.last_index, f"no entry {index} in ({self.base_index}, {self.last_index}]"
        return self._entries[index - self.base_index - 1]

    def slice(self, lo: int, hi_exclusive: int, bytes_max: int, count_max: int) -> list[Entry]:
        """Entries of [lo, hi) as far as they fit, but at least one. AssertionError outside (base, last]."""
        assert self.base_index < lo <= hi_exclusive <= self.last_index + 1, f"[{lo}, {hi_exclusive}) of {self!r}"
        start = lo - self.base_index - 1
        entries = self._entries[start : min(hi_exclusive - self.base_index - 1, start + count_max)]
        size = 0
        for position, entry in enumerate(entries):
            size += len(entry.payload) + ENTRY_BYTES
            if size > bytes_max and position:
                return entries[:position]
        return entries

    def size_of(self, lo: int, hi_exclusive: int) -> int:
        """Bytes of the entries of [lo, hi)."""
        start = lo - self.base_index - 1
        assert start >= 0, f"[{lo}, {hi_exclusive}) of {self!r}"
        return sum(map(entry_bytes, self._entries[start : hi_exclusive - self.base_index - 1]))

    def append(self, entries: list[Entry]) -> None:
        """At the end; indexes must continue the log."""
        if not entries:
            return
        assert entries[0].index == self.last_index + 1, f"{entries[0]!r} does not continue {self!r}"
        self._entries += entries
        self.last_index += len(entries)
        self.bytes += sum(map(entry_bytes, entries))

    def replace(self, entries: list[Entry]) -> None:
        """Drops everything from the first entry's index on, then appends."""
        first = entries[0].index
        assert self.base_index < first <= self.last_index + 1, f"{first} is outside of {self!r}"
        offset = first - self.base_index - 1
        self.bytes -= sum(map(entry_bytes, self._entries[offset:]))
        del self._entries[offset:]
        self.last_index = first - 1
        self.handed_index = min(self.handed_index, first - 1)
        self.persisted_index = min(self.persisted_index, first - 1)
        self.append(entries)

    def compact_to(self, index: int) -> None:
        """Forgets the entries up to `index`, which becomes the base. Nothing below the base changes anything."""
        if index <= self.base_index:
            return
        term = self.term_at(index)
        assert term is not None and index <= self.persisted_index, f"cannot compact {self!r} to {index}"
        count = index - self.base_index
        self.bytes -= sum(map(entry_bytes, self._entries[:count]))
        del self._entries[:count]
        self.base_index = index
        self.base_term = term

    def reset(self, index: int, term: int) -> None:
        """Forgets everything: a snapshot takes its place, which is durable before anything is said about it."""
        self._entries.clear()
        self.base_index = self.last_index = self.handed_index = self.persisted_index = index
        self.base_term = term
        self.bytes = 0

    def last_at_or_below(self, index: int, term: int) -> int:
        """The highest index not above `index` whose term is not above `term`; the base if there is none above it, and
        `index` itself below the base, where no term is known. Terms never fall along a log, so it is a bisection."""
        if index < self.base_index:
            return index
        count = min(index, self.last_index) - self.base_index
        return self.base_index + bisect_right(self._entries, term, 0, count, key=_term)

    def __repr__(self) -> str:
        return f"log({self.base_index}, {self.persisted_index}, {self.handed_index}, {self.last_index}]"

    def check_invariants(self) -> None:
        assert self.base_index <= self.persisted_index <= self.handed_index <= self.last_index, repr(self)
        assert self.last_index == self.base_index + len(self._entries), repr(self)
        assert self.bytes == sum(map(entry_bytes, self._entries)), "bytes are counted"
        term = self.base_term
        for index, entry in enumerate(self._entries, self.base_index + 1):
            assert entry.index == index, f"{entry!r} stands at {index}"
            assert entry.term >= term, f"{entry!r} follows term {term}"
            term = entry.term
