"""A scan over all shards, merged in key order page by page.

Every shard is asked for pages of its own; what is smaller than the last key known of each unfinished shard can be given out, since
nothing smaller can still come. Held are at most one page of each shard and one asked for ahead. The cursor is a key, so it
knows nothing of shards, leaders or servers. Each page of a shard is consistent in itself; the scan is no snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Self

from client.arguments import octets, whole
from client.cursor import decode_cursor, encode_cursor, query_hash
from client.requests import Query
from client.results import Key, KvItem, Page
from client.router import Router
from client.surroundings import Surroundings
from cluster.errors import TenfoldError, invalid
from cluster.ring.ring import routing_key
from proto.gen import kv_pb2, node_pb2

FIRST_PAGE_KEYS = 64
PAGE_GROWTH = 4
ITEM_BYTES = 32  # an item's tags, lengths and numbers, at most
PAGE_ITEMS_DEFAULT = 1000


def after_prefix(prefix: bytes) -> bytes:
    """The first key behind all keys with `prefix`; empty where there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""


class ScanQuery(NamedTuple):
    """start <= key < end, an empty end meaning to the last."""

    start: bytes
    end: bytes
    tag_prefix: bytes
    reverse: bool
    keys_only: bool

    @classmethod
    def of(cls, prefix: Key, start: Key, end: Key, *, reverse: bool, keys_only: bool) -> Self:
        raw_prefix, raw_start, raw_end = octets(prefix, "prefix"), octets(start, "start"), octets(end, "end")
        if raw_prefix:
            if raw_start or raw_end:
                raise invalid("prefix", "a range is a prefix, or a start and an end, not both")
            return cls(raw_prefix, after_prefix(raw_prefix), raw_prefix, reverse, keys_only)
        if raw_end and raw_end < raw_start:
            raise invalid("end", "lies before start")
        return cls(raw_start, raw_end, b"", reverse, keys_only)

    def shards(self, router: Router) -> list[int]:
        """Those that may hold keys of the range: one if the prefix holds a whole hash tag, else all."""
        if routing_key(self.tag_prefix) != self.tag_prefix:
            return [router.shard_of(self.tag_prefix)]
        return list(range(1, router.shards + 1))

    def hash(self) -> int:
        return query_hash(self.start, self.end, self.reverse)


class _Pages:
    """The pages of one shard; at most one is asked for at a time."""

    __slots__ = (
        "_around",
        "_asked",
        "_keys",
        "_start_end",
        "deadline_s",
        "finished",
        "index",
        "items",
        "shard",
        "stale_ms",
    )

    def __init__(
        self, around: Surroundings, shard: int, start: bytes, end: bytes, keys: int, deadline_s: float | None
    ) -> None:
        self._around = around
        self.shard = shard
        self.deadline_s = deadline_s
        self._start_end = (start, end)
        self._keys = keys
        self._asked: Query | None = None
        self.items: list[kv_pb2.KeyValue] = []
        self.finished = False
        self.index = 0
        self.stale_ms = 0

    def ask(self, query: ScanQuery, consistency: node_pb2.Consistency.ValueType, *, count_only: bool = False) -> None:
        """Asks for the next page, unless that is under way."""
        if self._asked is not None or self.finished:
            return
        around, limits = self._around, self._around.limits
        start, end = self._start_end
        keys = 0 if count_only else min(self._keys, limits.scan_keys_max)
        scan = kv_pb2.KvScan(
            start=start, end=end, limit=keys, reverse=query.reverse, keys_only=query.keys_only, count_only=count_only
        )
        item = limits.key_bytes_max + ITEM_BYTES + (0 if query.keys_only else limits.value_bytes_max)
        weight = min(keys * item, limits.scan_bytes_max + item)
        body = kv_pb2.KvQuery(scan=scan).SerializeToString()
        asked = Query(around.future(), around.deadline(self.deadline_s), "kv", body, consistency, weight)
        around.batcher.add(self.shard, asked)
        self._asked = asked
        self._keys = min(self._keys * PAGE_GROWTH, limits.scan_keys_max)

    async def receive(self, *, reverse: bool) -> kv_pb2.KvAnswer:
        """Waits for the page asked for."""
        assert self._asked is not None, "a page is asked for before it is received"
        outcome: Any = await self._asked.future
        self._asked = None
        if isinstance(outcome, TenfoldError):
            raise TenfoldError(outcome.code, outcome.message, **outcome.details)
        answer = kv_pb2.KvAnswer.FromString(outcome.body)
        self.index, self.stale_ms = outcome.index, max(self.stale_ms, outcome.stale_ms)
        self.items.extend(answer.items)
        self.finished = not answer.more
        start, end = self._start_end
        self._start_end = (start, answer.next) if reverse else (answer.next, end)
        return answer


class Scan:
    """Iterate it, or ask it for pages; not both at once, and by one caller. Made by `Kv.scan`."""

    def __init__(
        self,
        around: Surroundings,
        query: ScanQuery,
        limit: int | None,
        cursor: str | None,
        consistency: node_pb2.Consistency.ValueType,
        deadline_s: float | None,
    ) -> None:
        if limit is not None and whole(limit, "limit") < 1:
            raise invalid("limit", f"{limit}, must be at least 1")
        self._around = around
        self._query = query
        self._left = limit
        self._consistency = consistency
        self._deadline_s = deadline_s
        start, end = query.start, query.end
        self._position = end if query.reverse else start
        if cursor is not None:
            self._position = decode_cursor(cursor, around.router.cluster_id, query.hash())
        start, end = (start, self._position) if query.reverse else (self._position, end)
        self._ended = False
        first = FIRST_PAGE_KEYS if limit is None else min(limit, FIRST_PAGE_KEYS)
        self._shards = [_Pages(around, shard, start, end, first, deadline_s) for shard in query.shards(around.router)]
        self._ready: list[KvItem] = []
        self._given = 0

    @property
    def cursor(self) -> str | None:
        """Goes on behind the last item given; None when the range is done."""
        if self._ended and self._given >= len(self._ready):
            return None
        return encode_cursor(self._around.router.cluster_id, self._query.hash(), self._position)

    @property
    def indexes(self) -> dict[int, int]:
        """The log index, by shard, that its latest page was read at."""
        return {pages.shard: pages.index for pages in self._shards if pages.index}

    @property
    def stale_ms(self) -> int:
        """The oldest answer was at most so old; 0 unless read stale."""
        return max(pages.stale_ms for pages in self._shards)

    async def page(self, items: int = PAGE_ITEMS_DEFAULT) -> Page:
        """Up to `items` items, fewer only at the end of the range or of the scan's limit."""
        if whole(items, "items") < 1:
            raise invalid("items", f"{items}, must be at least 1")
        given: list[KvItem] = []
        while len(given) < items and await self._fill():
            wanted = items - len(given) if self._left is None else min(items - len(given), self._left)
            take = self._ready[self._given : self._given + wanted]
            given += take
            self._advance(len(take))
        return Page(given, self.cursor if await self._more() else None)

    async def _more(self) -> bool:
        """Whether the range goes on; a limit that is reached tells nothing, so the cursor is given."""
        return self._left == 0 or await self._fill()

    def __aiter__(self) -> AsyncIterator[KvItem]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[KvItem]:
        while await self._fill():
            item = self._ready[self._given]
            self._advance(1)
            yield item

    def _advance(self, count: int) -> None:
        self._given += count
        last = self._ready[self._given - 1].key
        self._position = last if self._query.reverse else last + b"\0"
        if self._left is not None:
            self._left -= count

    async def _fill(self) -> bool:
        """Makes sure that the next item is ready; False at the end."""
        while self._given >= len(self._ready):
            if self._ended or self._left == 0:
                return False
            await self._merge()
        return self._left != 0

    async def _merge(self) -> None:
        """Receives a page of every shard that has none and takes what can be given out."""
        query = self._query
        for pages in self._shards:
            if not pages.items:
                pages.ask(query, self._consistency)
        for pages in self._shards:
            while not pages.items and not pages.finished:
                pages.ask(query, self._consistency)
                await pages.receive(reverse=query.reverse)
        ready = self._take_ready()
        buffered = sum(len(pages.items) for pages in self._shards) + len(ready)
        if self._left is None or self._left > buffered:
            for pages in self._shards:  # ahead, while the caller works on what is ready
                if not pages.items:
                    pages.ask(query, self._consistency)
        self._ready, self._given = ready, 0
        self._ended = not ready

    def _take_ready(self) -> list[KvItem]:
        reverse = self._query.reverse
        unfinished = [pages.items[-1].key for pages in self._shards if pages.items and not pages.finished]
        bound = (max(unfinished) if reverse else min(unfinished)) if unfinished else None
        ready: list[KvItem] = []
        for pages in self._shards:
            items = pages.items
            cut = len(items) if bound is None else _cut(items, bound, reverse)
            ready += [KvItem(item.key, item.value, item.version) for item in items[:cut]]
            pages.items = items[cut:]
        ready.sort(reverse=reverse)  # keys are unique, so nothing else is compared; sorted runs merge in linear time
        return ready


def _cut(items: list[kv_pb2.KeyValue], bound: bytes, reverse: bool) -> int:
    """How many of `items` lie at or before `bound` in the scan's order."""
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        key = items[middle].key
        if (key >= bound) if reverse else (key <= bound):
            low = middle + 1
        else:
            high = middle
    return low


class Count:
    """The number of keys in a range, all shards counted side by side. Made by `Kv.count`."""

    def __init__(
        self,
        around: Surroundings,
        query: ScanQuery,
        consistency: node_pb2.Consistency.ValueType,
        deadline_s: float | None,
    ) -> None:
        self._query, self._consistency = query, consistency
        self._shards = [
            _Pages(around, shard, query.start, query.end, 0, deadline_s) for shard in query.shards(around.router)
        ]

    async def total(self) -> int:
        total = 0
        counting = self._shards
        while counting:
            for pages in counting:
                pages.ask(self._query, self._consistency, count_only=True)
            for pages in counting:
                total += (await pages.receive(reverse=False)).count
            counting = [pages for pages in counting if not pages.finished]
        return total
