"""The change feed of a shard: what each entry changed, for watches and invalidation.

Laws: one record per entry that changed anything, so a reader above the floor misses nothing and gets nothing twice; the feed
is bounded, the oldest records go first, and `floor` is the highest index that is gone. Which records go depends on the
view's contents alone, so every replica keeps the same feed.

The view holds index (8 bytes) -> record, and under index 0, which no entry has, the floor. A record is groups of changes of
one capability: length and name, count, for each change the lengths of key and event, then keys and events in turn.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ReadView, View

_INDEX = struct.Struct(">Q")
_FLOOR_KEY = _INDEX.pack(0)
_FIRST_KEY = _INDEX.pack(1)
_COUNT = struct.Struct(">I")

Changes = list[tuple[bytes, bytes]]
"""(key, encoded event) in the order of the changes."""

Event = tuple[int, str, bytes, bytes]
"""(log index, capability, key, encoded event)."""


class Feed:
    """`floor`: the oldest index one may resume after. `last_index`: the last entry that changed anything."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._view: View | None = None
        self.floor = 0
        self.last_index = 0
        # Index and size of each record kept, from `_head` on.
        self._indexes: array[int] = array("Q")
        self._sizes: array[int] = array("Q")
        self._head = 0
        self._bytes = 0
        # The newest records, so that a reader near the end does not scan the view; complete above `_tail_after`.
        self._tail: deque[tuple[int, bytes]] = deque()
        self._tail_bytes = 0
        self._tail_after = 0

    def load(self, view: View) -> None:
        self._view = view
        floor = view.get(_FLOOR_KEY)
        self.floor = _INDEX.unpack(floor)[0] if floor is not None else 0
        self._indexes, self._sizes, self._head, self._bytes = array("Q"), array("Q"), 0, 0
        for key, record in view.scan(_FIRST_KEY, b""):
            self._indexes.append(_INDEX.unpack(key)[0])
            self._sizes.append(len(record))
            self._bytes += len(record)
        self.last_index = self._indexes[-1] if self._indexes else self.floor
        self._tail.clear()
        self._tail_bytes, self._tail_after = 0, self.last_index

    def append(self, index: int, groups: list[tuple[str, Changes]]) -> None:
        """The record of an entry, written to the view. The newest record is kept whatever its size."""
        assert self._view is not None and index > self.last_index, "records are in log order"
        record = _encode(groups)
        size = len(record)
        self._view.put(_INDEX.pack(index), record)
        self._indexes.append(index)
        self._sizes.append(size)
        self._bytes += size
        self.last_index = index
        if self._bytes > self._limits.feed_bytes_max or len(self._indexes) - self._head > self._limits.feed_records_max:
            self._drop_oldest(self._view)
        self._tail.append((index, record))
        self._tail_bytes += size
        while self._tail_bytes > self._limits.feed_tail_bytes_max or self._tail[0][0] <= self.floor:
            self._tail_after, dropped = self._tail.popleft()
            self._tail_bytes -= len(dropped)
            if not self._tail:
                break

    def _drop_oldest(self, view: View) -> None:
        # An eighth at a time, so that the floor is not written once per entry.
        bytes_kept = self._limits.feed_bytes_max - self._limits.feed_bytes_max // 8
        records_kept = self._limits.feed_records_max - self._limits.feed_records_max // 8
        last = len(self._indexes) - 1
        head = self._head
        while head < last and (self._bytes > bytes_kept or len(self._indexes) - head > records_kept):
            self.floor = self._indexes[head]
            view.delete(_INDEX.pack(self.floor))
            self._bytes -= self._sizes[head]
            head += 1
        self._head = head
        view.put(_FLOOR_KEY, _INDEX.pack(self.floor))
        if head > len(self._indexes) // 2:
            del self._indexes[:head]
            del self._sizes[:head]
            self._head = 0

    def read(
        self, after_index: int, start: bytes, end: bytes, bytes_max: int, capability: str = "kv"
    ) -> tuple[list[Event], int]:
        """The events of a capability above `after_index` with start <= key < end (an empty `end` means to the last), in log order, and the
        index up to which everything was told: go on with it, at once while it is below `last_index`. Whole records, until
        one passes `bytes_max` of matched events or four times that of records read. TenfoldError(COMPACTED, floor=...)."""
        if after_index < self.floor:
            raise TenfoldError(Code.COMPACTED, f"history up to {self.floor} is gone", floor=self.floor)
        events: list[Event] = []
        told = after_index
        matched = seen = 0
        for index, record in self._records(after_index):
            for name, key, event in _decode(record):
                if name == capability and start <= key and (not end or key < end):
                    events.append((index, name, key, event))
                    matched += len(key) + len(event)
            told = index
            seen += len(record)
            if matched >= bytes_max or seen >= 4 * bytes_max:
                break
        return events, told

    def _records(self, after_index: int) -> Iterable[tuple[int, bytes]]:
        if after_index >= self.last_index:
            return ()
        if after_index >= self._tail_after:
            newer = sum(1 for _ in _while_above(self._tail, after_index))
            return islice(self._tail, len(self._tail) - newer, None)
        assert self._view is not None, "the feed is loaded"
        pairs = self._view.scan(_INDEX.pack(after_index + 1), b"")
        return ((_INDEX.unpack(key)[0], record) for key, record in pairs)

    def check_invariants(self, view: ReadView) -> None:
        indexes: list[int] = []
        total = 0
        for key, record in view.scan(_FIRST_KEY, b""):
            indexes.append(_INDEX.unpack(key)[0])
            total += len(record)
            keys = [(capability, changed) for capability, changed, _ in _decode(record)]
            assert keys, "an entry that changed nothing has no record"
            assert len(keys) == len(set(keys)), f"entry {indexes[-1]} changes a key twice: a version is a log index"
        assert indexes == list(self._indexes[self._head :]), "the index in memory is the index in the view"
        assert total == self._bytes == sum(self._sizes[self._head :]), "bytes are counted"
        assert len(indexes) <= max(1, self._limits.feed_records_max), "records are bounded"
        assert total <= self._limits.feed_bytes_max or len(indexes) == 1, "bytes are bounded"
        assert not indexes or (self.floor < indexes[0] and self.last_index == indexes[-1]), "the floor is below all"
        floor = view.get(_FLOOR_KEY)
        assert self.floor == (_INDEX.unpack(floor)[0] if floor is not None else 0), "the floor is in the view"
        tail = [index for index, _ in self._tail]
        assert tail == indexes[bisect_left(indexes, self._tail_after + 1) :], "the tail is complete"
        assert self._tail_bytes == sum(len(record) for _, record in self._tail), "the tail is counted"


def _while_above(tail: deque[tuple[int, bytes]], after_index: int) -> Iterator[None]:
    for index, _ in reversed(tail):
        if index <= after_index:
            return
        yield None


def _encode(groups: list[tuple[str, Changes]]) -> bytes:
    pieces: list[bytes] = []
    for capability, changes in groups:
        flat = list(chain.from_iterable(changes))
        name = capability.encode()
        pieces += (bytes((len(name),)), name, _COUNT.pack(len(changes)))
        pieces.append(struct.pack(f">{len(flat)}I", *map(len, flat)))
        pieces += flat
    return b"".join(pieces)


def _decode(record: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    offset = 0
    while offset < len(record):
        name_end = offset + 1 + record[offset]
        capability = record[offset + 1 : name_end].decode()
        count = _COUNT.unpack_from(record, name_end)[0]
        lengths = struct.unpack_from(f">{2 * count}I", record, name_end + 4)
        offset = name_end + 4 + 8 * count
        for position in range(0, 2 * count, 2):
            key_end = offset + lengths[position]
            event_end = key_end + lengths[position + 1]
            yield capability, record[offset:key_end], record[key_end:event_end]
            offset = event_end
