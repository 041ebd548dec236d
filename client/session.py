"""A session of one shard: the sequences that make a resent request apply once (Raft thesis, section 6.3).

Laws: a sequence is issued once and belongs to one sub-request for ever; the low-water mark is the highest sequence up to which all
are closed, and a closed sequence is never sent again; no more than `window` sequences are above the mark.
"""

from __future__ import annotations


class Session:
    """`id` is the server's. Sequences count from 1."""

    __slots__ = ("_closed", "_issued", "id", "low_water")

    def __init__(self, session_id: int) -> None:
        assert session_id > 0, "0 means no session"
        self.id = session_id
        self.low_water = 0
        self._issued = 0
        self._closed: set[int] = set()

    def room(self, window: int) -> int:
        """How many sequences may be issued now."""
        return self.low_water + window - self._issued

    def issue(self) -> int:
        self._issued += 1
        return self._issued

    def close(self, sequence: int) -> None:
        """`sequence` was answered, or its caller gave up: it is never sent again."""
        assert self.low_water < sequence <= self._issued and sequence not in self._closed, "a sequence is closed once"
        self._closed.add(sequence)
        while self.low_water + 1 in self._closed:
            self.low_water += 1
            self._closed.remove(self.low_water)
