"""Real nodes' transports on loopback: a server, its peers and a handler that records."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import xxhash

from cluster.limits import DEFAULT, Limits
from cluster.ports import Dial
from cluster.raft.messages import Message
from cluster.wire.channel import GrpcChannel, GrpcStream
from node.transport.peer_service import PeerService
from node.transport.peers import Peers
from node.transport.server import Server
from node.transport.snapshot_stream import Arriving
from proto.gen import peer_pb2

CLUSTER = b"c" * 16


TEST_SECONDS_MAX = 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test here hangs: what should come within milliseconds either comes or fails the test."""
    for item in items:
        here = Path(__file__).parent in item.path.parents
        if here and isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = bounded(item.obj)


def bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*arguments: Any, **named: Any) -> None:
        async with asyncio.timeout(TEST_SECONDS_MAX):
            await test(*arguments, **named)

    return run


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return int(time.time() * 1000)


class Spawner:
    """Keeps every task and what killed it."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.append(task)
        return task


class Recorder:
    """A PeerHandler that remembers; `changed` wakes whoever waits for a condition."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, Message]] = []
        self.batches: list[int] = []
        self.ups: list[tuple[str, int, str]] = []
        self.downs: list[str] = []
        self.newer_maps: list[str] = []
        self.heartbeats: list[tuple[str, int, int, int]] = []
        self.beats: list[peer_pb2.NodeHeartbeat] = []
        self.snapshots: list[tuple[str, int, bytes]] = []
        self.held: dict[tuple[str, int, int], list[bytes]] = {}
        self.attempts = 0
        self.changed = asyncio.Event()

    def attempted(self) -> None:
        self.attempts += 1
        self.changed.set()

    def on_messages(self, node: str, messages: list[tuple[int, Message]]) -> None:
        self.messages += [(node, shard, message) for shard, message in messages]
        self.batches.append(len(messages))
        self.changed.set()

    def on_peer_up(self, node: str, incarnation: int, address: str) -> None:
        self.ups.append((node, incarnation, address))
        self.changed.set()

    def on_peer_down(self, node: str) -> None:
        self.downs.append(node)
        self.changed.set()

    def on_newer_map(self, address: str) -> None:
        self.newer_maps.append(address)
        self.changed.set()

    def on_heartbeat(self, node: str, beat: peer_pb2.NodeHeartbeat) -> None:
        self.heartbeats.append((node, beat.incarnation, beat.led_shards, beat.epoch))
        self.beats.append(beat)
        self.changed.set()

    async def on_snapshot(
        self, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        """Keeps what comes, also of a stream that breaks, and goes on from there."""
        held = self.held.setdefault((node, header.message.shard, header.id), [])
        yield peer_pb2.SnapshotReply(next=len(held))
        while not (chunk := await chunks.next()).last:
            assert chunk.number == len(held), "each chunk comes once and in order"
            held.append(chunk.pairs)
            self.changed.set()
            yield peer_pb2.SnapshotReply(next=len(held))
        whole = b"".join(held)
        assert chunk.digest == xxhash.xxh3_64_intdigest(whole)
        self.snapshots.append((node, header.message.shard, whole))
        yield peer_pb2.SnapshotReply(next=len(held), done=True, accepted=True)

    async def until_attempts(self, more: int) -> None:
        """Until the links have tried so many times more to open a stream."""
        wanted = self.attempts + more
        await self.until(lambda: self.attempts >= wanted)

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class CountingChannel(GrpcChannel):
    """A real channel that tells of each attempt to open a stream."""

    attempted: Callable[[], None]

    def stream(self, service: str, method: str) -> GrpcStream:
        self.attempted()
        return super().stream(service, method)


class Station:
    """One node's transport."""

    def __init__(
        self, name: str, incarnation: int, limits: Limits, cluster_id: bytes, port: int, dial: Dial | None
    ) -> None:
        self.name = name
        self.limits = limits
        self.recorder = Recorder()
        self.spawn = Spawner()
        self.clock = SystemClock()
        self.peers = Peers(
            name, cluster_id, incarnation, "", dial or self.dial, self.spawn, self.clock, limits, self.recorder
        )
        self.server = Server([("Peer", PeerService(self.peers))], address=f"127.0.0.1:{port}", limits=limits)

    def dial(self, address: str) -> GrpcChannel:
        channel = CountingChannel(address, self.limits)
        channel.attempted = self.recorder.attempted
        return channel

    @property
    def address(self) -> str:
        return self.peers.identity.address

    async def start(self) -> Station:
        self.peers.identity.address = f"127.0.0.1:{await self.server.start()}"
        return self

    async def stop(self) -> None:
        """Fails if any task of the transport ended badly. May be called twice."""
        await self.peers.close()
        await self.server.stop(0)
        for task in self.spawn.tasks:
            assert task.done() and task.exception() is None, f"{task.get_name()} ended well"

    def knows(self, *others: Station) -> None:
        for other in others:
            self.peers.set_address(other.name, other.address)


@pytest.fixture
async def station() -> AsyncIterator[Callable[..., Awaitable[Station]]]:
    """Makes started stations and stops them all in the end."""
    made: list[Station] = []

    async def make(
        name: str,
        incarnation: int = 1,
        limits: Limits = DEFAULT,
        cluster_id: bytes = CLUSTER,
        port: int = 0,
        dial: Dial | None = None,
    ) -> Station:
        made.append(await Station(name, incarnation, limits, cluster_id, port, dial).start())
        return made[-1]

    yield make
    async with asyncio.timeout(TEST_SECONDS_MAX):
        for each in made:
            await each.stop()
