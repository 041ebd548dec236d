"""One shard's state as a stream of chunks, and the way in: written under a new generation, then switched to.

Install (architecture, "storage"): chunks go under a new generation; one batch switches generation and applied index;
flush; then the caller moves the log's base; then `finish` deletes the old generation. A crash leaves one side or the
other, and `ShardState.clean` deletes the generation that does not count.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Protocol

from cluster.errors import Code, TenfoldError
from cluster.ports import State, StateSnapshot
from node.storage.failpoints import failpoint
from node.storage.layout import GENERATIONS, after, data_prefix, header_key, read_header

PAIR = struct.Struct("<II")
"""Lengths of key and value, before each pair."""

STALL_RETRY_S = 0.02


class Owner(Protocol):
    """What a sink needs of the shard's state."""

    shard: int
    generation: int

    def switch(self, generation: int, index: int, term: int, time_ms: int) -> bool: ...


class SnapshotSource:
    """One shard as it was in the engine. `applied_index`, `applied_term`, `time_ms` belong to what it holds."""

    def __init__(self, frozen: StateSnapshot, shard: int, chunk_bytes: int) -> None:
        self._frozen = frozen
        self._chunk_bytes = chunk_bytes
        self.generation = self.applied_index = self.applied_term = self.time_ms = 0
        key = header_key(shard)
        for _, value in frozen.scan(key, key + b"\0"):
            self.generation, self.applied_index, self.applied_term, self.time_ms = read_header(value, shard)
        self._prefix = data_prefix(shard, self.generation)

    def chunks(self) -> Iterator[bytes]:
        """Pairs with their lengths, keys without the generation. A chunk is at most `snapshot_chunk_bytes` long unless a
        single pair is longer."""
        cut, size = len(self._prefix), 0
        pieces: list[bytes] = []
        for key, value in self._frozen.scan(self._prefix, after(self._prefix)):
            length = PAIR.size + len(key) - cut + len(value)
            if pieces and size + length > self._chunk_bytes:
                yield b"".join(pieces)
                pieces, size = [], 0
            pieces += (PAIR.pack(len(key) - cut, len(value)), key[cut:], value)
            size += length
        if pieces:
            yield b"".join(pieces)

    def close(self) -> None:
        self._frozen.close()


class SnapshotSink:
    """Writes a snapshot beside the state that counts, and switches to it at the end."""

    def __init__(self, owner: Owner, state: State, chunk_bytes: int) -> None:
        self.generation = (owner.generation + 1) % GENERATIONS
        self._owner = owner
        self._state = state
        self._chunk_bytes = chunk_bytes
        self._old = data_prefix(owner.shard, owner.generation)
        self._new = data_prefix(owner.shard, self.generation)
        self._open = True
        self._committed = False

    async def add(self, pairs: bytes) -> None:
        """One chunk as `SnapshotSource.chunks` gave it; waits while the engine stalls. TenfoldError for a malformed one."""
        assert self._open, "the install has ended"
        batch: dict[bytes, bytes | None] = {}
        size = 0
        for key, value in read_pairs(pairs):
            batch[self._new + key] = value
            size += len(key) + len(value)
            if size >= self._chunk_bytes:
                await self._write(batch)
                batch, size = {}, 0
        await self._write(batch)
        failpoint("install.chunk")

    async def _write(self, batch: dict[bytes, bytes | None]) -> None:
        while batch and not self._state.write(batch):
            await asyncio.sleep(STALL_RETRY_S)

    def commit(self, index: int, term: int, time_ms: int) -> None:
        """The new generation counts, with its applied index, in one batch; durable after a flush. When the engine stalls:
        Overloaded, nothing changed and the install is given up."""
        assert self._open, "the install has ended"
        failpoint("install.before")
        if not self._owner.switch(self.generation, index, term, time_ms):
            self.abort()
            raise TenfoldError(Code.OVERLOADED, f"shard {self._owner.shard}: the state engine stalls")
        self._open, self._committed = False, True
        failpoint("install.switched")

    def abort(self) -> None:
        """Gives up; what was written is deleted. Without effect after `commit`."""
        if self._open:
            self._open = False
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
