"""A shard's slice of the node's state: views of its capabilities, its header, its snapshots.

Everything applied goes through one overlay, the node's `StateBatch`, and reaches the engine as one atomic batch with the
applied indexes. Durable-applied is the applied index that was in the engine before a flush that completed.

A slice belongs to one replica id: what another one left there counts as nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import islice
from operator import itemgetter

import xxhash

from cluster.limits import DEFAULT, Limits
from cluster.ports import State
from cluster.raft.configuration import Configuration
from node.storage.layout import (
    DATA,
    HEADERS,
    Header,
    after,
    configuration_key,
    data_prefix,
    header_key,
    read_configuration,
    read_header,
    shard_of,
    shard_prefix,
)
from node.storage.snapshot import PAIR, SnapshotSink, SnapshotSource

LOOK_MS = 1000

__all__ = ["CapabilityView", "NodeState", "ShardState", "SnapshotSink", "SnapshotSource", "StateBatch"]


class StateBatch(dict[bytes, bytes | None]):
    """What was applied and is not in the engine yet, for all shards of the node; None deletes. Views write by plain item
    assignment; only `clear` and `forget` remove keys."""

    __slots__ = ("_sorted",)

    def __init__(self) -> None:
        super().__init__()
        self._sorted: list[bytes] = []

    def keys_between(self, start: bytes, end: bytes) -> list[bytes]:
        """Its keys with start <= key < end, sorted. Keeps the sorted list and adds the keys that came since."""
        keys = self._sorted
        new = len(self) - len(keys)
        if new > 8:
            keys.extend(islice(self, len(keys), None))
            keys.sort()
        elif new:
            for key in list(islice(self, len(keys), None)):
                insort(keys, key)
        return keys[bisect_left(keys, start) : bisect_left(keys, end)]

    def clear(self) -> None:
        super().clear()
        self._sorted.clear()

    def forget(self, shard: int) -> None:
        """Drops everything of a shard."""
        mine = (header_key(shard), configuration_key(shard), shard_prefix(shard))
        for key in [key for key in self if key.startswith(mine)]:
            del self[key]
        self._sorted.clear()


class CapabilityView:
    """The `View` of one capability in one shard: the overlay first, then the engine."""

    __slots__ = ("_batch", "_name", "_prefix", "_state")

    def __init__(self, state: State, batch: StateBatch, name: bytes, prefix: bytes) -> None:
        self._state = state
        self._batch = batch
        self._name = name
        self._prefix = prefix

    def get(self, key: bytes) -> bytes | None:
        full = self._prefix + key
        batch = self._batch
        return batch[full] if full in batch else self._state.get(full)

    def put(self, key: bytes, value: bytes) -> None:
        self._batch[self._prefix + key] = value

    def delete(self, key: bytes) -> None:
        self._batch[self._prefix + key] = None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        prefix = self._prefix
        low, high = prefix + start, prefix + end if end else after(prefix)
        cut = len(prefix)
        pairs = self._state.scan(low, high, reverse=reverse)
        fresh = self._batch.keys_between(low, high)
        if fresh:
            pairs = overlaid(pairs, [(key, self._batch[key]) for key in fresh], reverse)
        return ((key[cut:], value) for key, value in pairs)

    def move(self, prefix: bytes) -> None:
        """The shard switched to another generation."""
        self._prefix = prefix + self._name


def overlaid(
    pairs: Iterator[tuple[bytes, bytes]], fresh: list[tuple[bytes, bytes | None]], reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Both in key order; of equal keys the fresh one counts, and a None hides."""
    if reverse:
        fresh.reverse()
    last = None
    for key, value in merge(fresh, pairs, key=itemgetter(0), reverse=reverse):  # stable: fresh comes first
        if key != last and value is not None:
            yield key, value
        last = key


class ShardState:
    """One shard's slice, as the replica `replica` left it; what another one left is deleted. `applied_index`,
    `applied_term`, `time_ms` and `configuration` (as of the applied index; None: nothing was applied yet that told one) count
    the overlay in."""

    def __init__(self, state: State, shard: int, batch: StateBatch, replica: int, limits: Limits = DEFAULT) -> None:
        self.shard = shard
        self.replica = replica
        self.limits = limits
        self.generation = self.applied_index = self.applied_term = self.time_ms = 0
        self.configuration: Configuration | None = None
        self._state = state
        self._batch = batch
        self._key = header_key(shard)
        self._views: dict[str, CapabilityView] = {}
        header = self._get(self._key)
        if header is None:
            return
        found = read_header(header, shard)
        if found.replica != replica:
            batch.forget(shard)
            delete_shard(state, shard)
            return
        _, self.generation, self.applied_index, self.applied_term, self.time_ms = found
        members = self._get(configuration_key(shard))
        if members is not None:
            self.configuration = read_configuration(members, shard)

    def _get(self, key: bytes) -> bytes | None:
        return self._batch[key] if key in self._batch else self._state.get(key)

    def view(self, capability: str) -> CapabilityView:
        """The view of a capability; it stays valid when a snapshot is installed, and then shows the new state."""
        view = self._views.get(capability)
        if view is None:
            assert capability and "/" not in capability, f"{capability!r}: a capability's name has no slash"
            name = capability.encode() + b"/"
            prefix = data_prefix(self.shard, self.generation) + name
            view = self._views[capability] = CapabilityView(self._state, self._batch, name, prefix)
        return view

    def set_applied(self, index: int, term: int, time_ms: int) -> None:
        """Joins the applied index to the batch, so that state and index are one."""
        assert index > self.applied_index, f"shard {self.shard}: applies {index} after {self.applied_index}"
        self.applied_index, self.applied_term, self.time_ms = index, term, time_ms
        self._batch[self._key] = Header(self.replica, self.generation, index, term, time_ms).encode()

    def set_configuration(self, configuration: Configuration) -> None:
        """Joins the batch as well; followed by `set_applied` for the same entry."""
        self.configuration = configuration
        self._batch[configuration_key(self.shard)] = configuration.encode()

    def snapshot(self) -> SnapshotSource:
        """A frozen copy of what the engine holds; what is still in the overlay is not in it."""
        return SnapshotSource(self._state.snapshot(), self.shard, self.limits.snapshot_chunk_bytes)

    def begin_install(self) -> SnapshotSink:
        """Takes a snapshot under the next generation. One at a time; leftovers of an earlier one are deleted first."""
        self.clean()
        return SnapshotSink(self, self._state)

    def switch(self, generation: int, index: int, term: int, time_ms: int, configuration: Configuration) -> bool:
        """One batch that makes another generation count. What the overlay held of this shard is of the past. False when
        the engine stalls: nothing changed."""
        header = Header(self.replica, generation, index, term, time_ms)
        members = {configuration_key(self.shard): configuration.encode()}
        if not self._state.write({self._key: header.encode(), **members}):
            return False
        self._batch.forget(self.shard)
        self.generation, self.applied_index, self.applied_term, self.time_ms = generation, index, term, time_ms
        self.configuration = configuration
        for view in self._views.values():
            view.move(data_prefix(self.shard, generation))
        return True

    def clean(self) -> None:
        """Deletes every generation but the one that counts."""
        shard, state = self.shard, self._state
        mine, above = data_prefix(shard, self.generation), after(data_prefix(shard, self.generation))
        for start, end in ((data_prefix(shard, 0), mine), (above, after(shard_prefix(shard)))):
            if start < end and next(state.scan(start, end), None) is not None:
                state.delete_range(start, end)

    def digest(self) -> int:
        """xxh3_64 over all pairs of the engine, the same on every replica with the same content, whatever its generation.
        Only meaningful while the overlay holds nothing of this shard."""
        prefix = data_prefix(self.shard, self.generation)
        total = xxhash.xxh3_64()
        for key, value in self._state.scan(prefix, after(prefix)):
            total.update(PAIR.pack(len(key) - len(prefix), len(value)))
            total.update(key[len(prefix) :])
            total.update(value)
        return int(total.intdigest())


def delete_shard(state: State, shard: int) -> None:
    """The header goes last: while it is there, whose the rest is can be told."""
    for first in (shard_prefix(shard), configuration_key(shard), header_key(shard)):
        state.delete_range(first, after(first))


class NodeState:
    """The engine of a node with what is known of its durability. `durable_applied`: by shard the replica and its applied
    index."""

    def __init__(self, engine: State) -> None:
        self.engine = engine
        self.durable_applied = self._applied()
        self._flushing = asyncio.Lock()
        self._waiting: StateBatch | None = None  # the overlay that a stalled engine did not take

    def _applied(self) -> dict[int, tuple[int, int]]:
        """The applied index of every shard as the engine holds it, and whose it is."""
        found = {}
        for key, value in self.engine.scan(*HEADERS):
            shard = shard_of(key)
            header = read_header(value, shard)
            found[shard] = (header.replica, header.applied_index)
        return found

    def shards(self) -> list[int]:
        """Every shard of which the engine holds anything, be it only what an install left."""
        found = set(self._applied())
        at, end = DATA
        while (pair := next(self.engine.scan(at, end), None)) is not None:
            found.add(shard_of(pair[0]))
            at = after(shard_prefix(shard_of(pair[0])))
        return sorted(found)

    def drop(self, shard: int) -> None:
        """Deletes everything of a shard, whosever it is. An install that is under way has to be given up before."""
        if self._waiting is not None:
            self._waiting.forget(shard)
        delete_shard(self.engine, shard)

    def write_batch(self, batch: StateBatch) -> bool:
        """Writes the overlay as one atomic batch and clears it. False when the engine stalls: nothing changed."""
        self._waiting = None
        if batch:
            if not self.engine.write(batch):
                self._waiting = batch
                return False
            batch.clear()
        return True

    async def flush(self) -> Mapping[int, tuple[int, int]]:
        """Durable-applied: the applied index of each shard that was in the engine when the flush started. StorageFailed.
        A flush that already runs is waited for, and another follows, since it may have started too early."""
        async with self._flushing:
            applied = self._applied()
            await self.engine.flush()
            self.durable_applied = applied
        return applied

    async def watch_over(self, limits: Limits) -> None:
        """For ever: a scrub of the engine, and then a look every now and then whether it has failed, since whoever met the
        damage may have been a reader that tells nobody. StateDamaged."""
        while True:
            await self.engine.scrub(limits.scrub_bytes_per_s)
            for _ in range(0, limits.scrub_every_ms, LOOK_MS):
                await asyncio.sleep(LOOK_MS / 1000)
                self.engine.get(HEADERS[0])

    def close(self) -> None:
        self.engine.close()
