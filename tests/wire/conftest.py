"""A real server on loopback whose Node handler each test fills in."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.limits import DEFAULT, Limits
from cluster.wire.channel import GrpcChannel, dial
from node.transport.server import Server
from proto.gen import meta_pb2, node_pb2, peer_pb2

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


class NodeHandler:
    """Tests replace the methods they need."""

    async def call(self, request: Any, context: Any) -> Any:
        return node_pb2.CallReply(epoch=len(request.requests))

    async def watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for index in range(request.after_index):
            yield node_pb2.WatchReply(index=index)

    async def watch_map(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield meta_pb2.ShardMap(epoch=request.above_epoch + 1)

    async def status(self, request: Any, context: Any) -> Any:
        return node_pb2.StatusReply(node=context.peer)

    async def stop(self, request: Any, context: Any) -> Any:
        return node_pb2.StopReply()

    async def drain(self, request: Any, context: Any) -> Any:
        return node_pb2.AdminReply()

    join = remove = rebalance = driver_status = drain


class PeerHandler:
    """Echoes frames; counts a snapshot's chunks."""

    async def frames(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for frame in requests:
            yield frame

    async def snapshot(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for chunk in requests:
            yield peer_pb2.SnapshotReply(next=chunk.number + 1)


@pytest.fixture
def node() -> NodeHandler:
    return NodeHandler()


@pytest.fixture
def peer() -> PeerHandler:
    return PeerHandler()


@pytest.fixture
async def serve(node: NodeHandler, peer: PeerHandler) -> AsyncIterator[Callable[..., Awaitable[tuple[Server, int]]]]:
    made: list[Server] = []

    async def make(port: int = 0, limits: Limits = DEFAULT) -> tuple[Server, int]:
        server = Server([("Node", node), ("Peer", peer)], address=f"127.0.0.1:{port}", limits=limits)
        made.append(server)
        return server, await server.start()

    yield make
    for server in made:
        async with asyncio.timeout(5):
            await server.stop(0)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., GrpcChannel]]:
    made: list[GrpcChannel] = []

    def make(port: int, limits: Limits = DEFAULT) -> GrpcChannel:
        made.append(dial(f"127.0.0.1:{port}", limits))
        return made[-1]

    yield make
    for channel in made:
        await channel.close()
