"""One shard's state as a stream of chunks, and the way in: written under a new generation, then switched to.

Either end may stop anywhere and go on: the frozen state is cut into the same chunks each time it is read, and a chunk
written twice changes nothing. Both work in slices, and rest after each `REST` times as long as it took: small pairs cost so
much (30 ms of CPU a megabyte for both ends) that calls would wait behind a snapshot that went as fast as it can.

Install (architecture, "storage"): chunks go under a new generation; one batch switches generation and applied index;
flush; then the caller moves the log's base; then `finish` deletes the old generation. A crash leaves one side or the
other, and `ShardState.clean` deletes the generation that does not count.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Protocol

import xxhash

from cluster.errors import Code, TenfoldError
from cluster.ports import State, StateSnapshot
from cluster.raft.configuration import Configuration
from node.storage.failpoints import failpoint
from node.storage.layout import GENERATIONS, after, data_prefix, header_key, read_header

PAIR = struct.Struct("<II")
"""Lengths of key and value, before each pair."""

STALL_RETRY_S = 0.02

SLICE_PAIRS = 256
"""Read or written without letting the loop go on: half a millisecond with small pairs."""
SLICE_BYTES = 64 * 1024
REST = 3
REST_S_MAX = 0.004
"""However slow a busy machine makes a slice, this much of it is some eight megabytes a second."""


class Owner(Protocol):
    """What a sink needs of the shard's state."""

    shard: int
    generation: int

    def switch(self, generation: int, index: int, term: int, time_ms: int, configuration: Configuration) -> bool: ...


class Slice:
    """What is done of a chunk without a pause."""

    __slots__ = ("_began", "_bytes", "_pairs")

    def __init__(self) -> None:
        self._pairs = self._bytes = 0
        self._began = asyncio.get_running_loop().time()

    def full(self, size: int) -> bool:
        """Counts a pair of that size; whether it is time to rest."""
        self._pairs += 1
        self._bytes += size
        return self._pairs >= SLICE_PAIRS or self._bytes >= SLICE_BYTES

    async def rest(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(min(REST * (loop.time() - self._began), REST_S_MAX))
        self._pairs = self._bytes = 0
        self._began = loop.time()


class SnapshotSource:
    """One shard as it was in the engine, read in chunks from 0 on. `applied_index`, `applied_term`, `time_ms` belong to
    what it holds. `number` is the next chunk's, `settled` the first that has not surely arrived. One reader at a time."""

    def __init__(self, frozen: StateSnapshot, shard: int, chunk_bytes: int) -> None:
        self.number = self.settled = 0
        self._frozen = frozen
        self._chunk_bytes = chunk_bytes
        self.generation = self.applied_index = self.applied_term = self.time_ms = 0
        key = header_key(shard)
        for _, value in frozen.scan(key, key + b"\0"):
            _, self.generation, self.applied_index, self.applied_term, self.time_ms = read_header(value, shard)
        self._prefix = data_prefix(shard, self.generation)
        self._digest = xxhash.xxh3_64()
        self._starts: dict[int, tuple[bytes, xxhash.xxh3_64]] = {0: (self._prefix, self._digest.copy())}
        self._pairs: Iterator[tuple[bytes, bytes]] | None = None
        self._held: tuple[bytes, bytes] | None = None  # read, and the first of the next chunk

    @property
    def digest(self) -> int:
        """xxh3_64 over what all chunks before `number` hold."""
        return int(self._digest.intdigest())

    def seek(self, number: int) -> None:
        """The next chunk to be read: 0, or any that was read and is not settled. TenfoldError for another."""
        if number not in self._starts:
            raise TenfoldError(Code.INVALID_ARGUMENT, f"snapshot: chunk {number} was not sent, or is settled")
        self._forget_scan()
        self.number = self.settled = number
        self._digest = self._starts[number][1].copy()

    def settle(self, number: int) -> None:
        """The chunks before `number` have arrived: `seek` goes back to none of them but to 0."""
        self.settled = number
        for each in [each for each in self._starts if 0 < each < number]:
            del self._starts[each]

    async def read(self) -> bytes | None:
        """The next chunk: pairs with their lengths, keys without the generation; None after the last. At most
        `snapshot_chunk_bytes` long unless a single pair is longer. One that was broken off is read again after `seek`."""
        if self._pairs is None:
            self._pairs = self._frozen.scan(self._starts[self.number][0], after(self._prefix))
            self._held = next(self._pairs, None)
        if self._held is None:
            return None
        chunk = await self._chunk(self._pairs)
        self._digest.update(chunk)
        self.number += 1
        start = self._held[0] if self._held is not None else after(self._prefix)
        self._starts[self.number] = (start, self._digest.copy())
        return chunk

    async def _chunk(self, pairs: Iterator[tuple[bytes, bytes]]) -> bytes:
        cut, size = len(self._prefix), 0
        pieces: list[bytes] = []
        piece = Slice()
        while self._held is not None:
            key, value = self._held
            length = PAIR.size + len(key) - cut + len(value)
            if pieces and size + length > self._chunk_bytes:
                break
            pieces += (PAIR.pack(len(key) - cut, len(value)), key[cut:], value)
            size += length
            if piece.full(length):
                await piece.rest()
            self._held = next(pairs, None)
        return b"".join(pieces)

    def _forget_scan(self) -> None:
        """Ends a scan at once: one that only waits to be collected would keep the engine's iterator."""
        close = getattr(self._pairs, "close", None)
        if close is not None:
            close()
        self._pairs = self._held = None

    def close(self) -> None:
        """Lets the engine go on; may be called twice."""
        self._forget_scan()
        self._frozen.close()


class SnapshotSink:
    """Writes a snapshot beside the state that counts, and switches to it at the end."""

    def __init__(self, owner: Owner, state: State) -> None:
        self.generation = (owner.generation + 1) % GENERATIONS
        self._owner = owner
        self._state = state
        self._old = data_prefix(owner.shard, owner.generation)
        self._new = data_prefix(owner.shard, self.generation)
        self._open = True
        self._committed = False

    async def add(self, pairs: bytes) -> None:
        """One chunk as `SnapshotSource.read` gave it; waits while the engine stalls. TenfoldError for a malformed one and
        once the install was given up."""
        batch: dict[bytes, bytes | None] = {}
        piece = Slice()
        for key, value in read_pairs(pairs):
            batch[self._new + key] = value
            if piece.full(len(key) + len(value)):
                await self._write(batch)
                batch = {}
                await piece.rest()
        await self._write(batch)
        failpoint("install.chunk")

    async def _write(self, batch: dict[bytes, bytes | None]) -> None:
        while True:
            if not self._open:
                raise TenfoldError(Code.UNAVAILABLE, f"shard {self._owner.shard}: the install was given up")
            if not batch or self._state.write(batch):
                return
            await asyncio.sleep(STALL_RETRY_S)

    def commit(self, index: int, term: int, time_ms: int, configuration: Configuration) -> None:
        """The new generation counts, with its applied index, in one batch; durable after a flush. When the engine stalls:
        Overloaded, and nothing changed: it may be tried again."""
        assert self._open, "the install has ended"
        failpoint("install.before")
        if not self._owner.switch(self.generation, index, term, time_ms, configuration):
            raise TenfoldError(Code.OVERLOADED, f"shard {self._owner.shard}: the state engine stalls")
        self._open, self._committed = False, True
        failpoint("install.switched")

    def abort(self, *, delete: bool = True) -> None:
        """Gives up; what was written is deleted, unless the caller knows better. Without effect after `commit`."""
        if self._open:
            self._open = False
            if delete:
                self._state.delete_range(self._new, after(self._new))

    def finish(self) -> None:
        """Deletes the old generation; to be called when the switch is durable and the log's base has moved."""
        assert self._committed, "an install is finished after its commit"
        self._state.delete_range(self._old, after(self._old))
        failpoint("install.cleaned")


def read_pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 0, len(data)
    while at < end:
        if end - at < PAIR.size:
            raise TenfoldError(Code.INVALID_ARGUMENT, "snapshot: a chunk ends inside a pair")
        key_bytes, value_bytes = PAIR.unpack_from(data, at)
        at += PAIR.size
        if end - at < key_bytes + value_bytes:
            raise TenfoldError(Code.INVALID_ARGUMENT, "snapshot: a chunk ends inside a pair")
        yield data[at : at + key_bytes], data[at + key_bytes : at + key_bytes + value_bytes]
        at += key_bytes + value_bytes
