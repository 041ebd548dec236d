"""A node that is far behind in a cluster of real nodes, and hands on both ends of the snapshots it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from cluster.limits import DEFAULT
from node.app import Node
from node.transport.snapshot_stream import Arriving
from proto.gen import peer_pb2
from tests.node.cluster_world import ClusterWorld

SHORT_LOGS = replace(DEFAULT, log_entries_kept_max=8, log_bytes_kept_max=4096, snapshot_chunk_bytes=512)
"""Fifty writes are enough to be far behind, and make some thirty chunks."""


async def one_falls_behind(world: ClusterWorld, writes: int = 50) -> tuple[Node, str]:
    """The leader, and a node that is down and can only catch up by a snapshot."""
    await world.put(b"k0", b"first")
    leader = world.leader(1)
    assert leader is not None
    late = next(name for name in world.names if name != leader.config.node)
    await world.crash([late], keep=True)
    for i in range(writes):
        assert (await world.put(b"key-%d" % i, b"x" * 100)).code == 0
    return leader, late


async def caught_up(world: ClusterWorld, node: Node, leader: Node, shard: int = 1) -> None:
    """Until the two states are the same; nothing is written meanwhile."""
    mine, other = node.shards.replicas[shard], leader.shards.replicas[shard]
    await world.until(
        lambda: (
            mine.core.applied_index == other.core.applied_index == other.core.commit_index
            and not mine.installing
            and not node.pump.batch_pending
        ),
        "caught up",
    )
    assert mine.state.digest() == other.state.digest()
    mine.applier.check_invariants()


def generations(world: ClusterWorld, node: str, shard: int = 1) -> set[bytes]:
    """The generations of which the node's engine holds anything, whether they count or not."""
    start, end = b"d" + shard.to_bytes(2, "big"), b"d" + (shard + 1).to_bytes(2, "big")
    return {key[3:7] for key in world.states[node].pairs.irange(start, end, inclusive=(True, False))}


class Tap:
    """Before a node's handler: what arrives, and what happens at a chunk, keyed by its place among all that came."""

    def __init__(self, node: Node) -> None:
        self.headers: list[peer_pb2.SnapshotHeader] = []
        self.begins: list[int] = []
        self.taken: list[int] = []
        self.last: list[peer_pb2.SnapshotReply] = []
        self.at: dict[int, Callable[[], Any]] = {}
        self.on_last: Callable[[], Any] = lambda: None
        self._next = node.events.on_snapshot
        node.events.on_snapshot = self._on_snapshot  # type: ignore[method-assign]

    async def _on_snapshot(
        self, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        self.headers.append(header)
        replies = self._next(node, header, Tapped(self, chunks))  # type: ignore[arg-type]
        try:
            began = False
            async for reply in replies:
                if not began and not reply.done:
                    self.begins.append(reply.next)
                began = True
                if reply.done:
                    self.on_last()
                    self.last.append(reply)
                yield reply
        finally:
            await replies.aclose()


class Tapped:
    def __init__(self, tap: Tap, chunks: Arriving) -> None:
        self._tap = tap
        self._chunks = chunks

    async def next(self) -> peer_pb2.SnapshotChunk:
        act = self._tap.at.pop(len(self._tap.taken), None)
        if act is not None and (waiting := act()) is not None:
            await waiting
        chunk = await self._chunks.next()
        self._tap.taken.append(chunk.number)
        return chunk


class Line:
    """The bulk channels that a node dials from now on: `on_write` sees each chunk first, and may change it or cancel."""

    def __init__(self, node: Node, on_write: Callable[[peer_pb2.SnapshotChunk, Any], None]) -> None:
        self.on_write = on_write
        dial = node.peers._dial
        node.peers._dial = lambda address: LineChannel(dial(address), self)


class LineChannel:
    def __init__(self, channel: Any, line: Line) -> None:
        self._channel = channel
        self._line = line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def stream(self, service: str, method: str) -> LineStream:
        return LineStream(self._channel.stream(service, method), self._line)


class LineStream:
    def __init__(self, stream: Any, line: Line) -> None:
        self._stream = stream
        self._line = line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def write(self, message: Any) -> None:
        if isinstance(message, peer_pb2.SnapshotChunk):
            self._line.on_write(message, self._stream)
        await self._stream.write(message)


class Frozen:
    """How many states a node has frozen, are still open, and were open at once."""

    def __init__(self, node: Node) -> None:
        self.made = self.open = self.most = 0
        engine, snapshot = node.state.engine, node.state.engine.snapshot

        def freeze() -> Any:
            self.made += 1
            self.open += 1
            self.most = max(self.most, self.open)
            return Held(snapshot(), self)

        engine.snapshot = freeze  # type: ignore[method-assign]


class Held:
    def __init__(self, frozen: Any, count: Frozen) -> None:
        self.scan = frozen.scan
        self._frozen = frozen
        self._count = count
        self._closed = False

    def close(self) -> None:
        self._count.open -= not self._closed
        self._closed = True
        self._frozen.close()


async def never() -> None:
    await asyncio.Event().wait()
