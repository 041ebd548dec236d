"""The cluster without nodes, with time: shards stamp what they apply, and a pulse goes where something is due."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from client.client import Client
from cluster.limits import DEFAULT, Limits
from proto.gen import node_pb2
from proto.gen.lock_pb2 import LockAnswer, LockCommand, LockQuery, LockState
from tests.client.fake_cluster import FakeCluster
from tests.client.virtual_time import passes, run

TICK_S = 0.05


class LockCluster(FakeCluster):
    """`still` shards have no leader: their time stands."""

    def __init__(self, shards: int = 3, nodes: int = 3, limits: Limits = DEFAULT) -> None:
        super().__init__(shards, nodes, limits, checked=True)
        self.still: set[int] = set()
        self._clients = 0
        self._ticker: asyncio.Task[None] | None = None

    def client(self, **settings: Any) -> Client:
        """No two draw the same leases."""
        self._clients += 1
        return super().client(**{"random": random.Random(self._clients), **settings})

    def serve(self, node: str, request: node_pb2.CallRequest) -> node_pb2.CallReply:
        self._stamp()
        return super().serve(node, request)

    def _stamp(self) -> None:
        for shard, world in self.worlds.items():
            if shard not in self.still:
                world.time_ms = max(world.time_ms, 1000 + int(asyncio.get_running_loop().time() * 1000))

    def start(self) -> None:
        self._ticker = asyncio.ensure_future(self._tick())

    async def stop(self) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)
        await self.close()

    async def _tick(self) -> None:
        while True:
            await passes(TICK_S)
            self._stamp()
            for shard, world in self.worlds.items():
                if shard not in self.still and world.applier.pulse_due(world.time_ms):
                    world.pulse()
                    self._wake(shard)

    # -- to look, at the source ----------------------------------------------------------------------------------------

    def name_in(self, shard: int, number: int = 0) -> str:
        return self.key_in(shard, number).decode()

    def state(self, name: str) -> LockState:
        world = self.worlds[self.shard_of(name.encode())]
        answer: LockAnswer = world.applier.query("lock", LockQuery(get=name))
        return answer.locks[0]

    def tokens(self, name: str) -> list[int]:
        return [holder.token for holder in self.state(name).holders]

    def lock_commands(self, which: str) -> list[tuple[int, Any]]:
        """Those sent so far: shard and command."""
        sent = [(sub.shard, LockCommand.FromString(sub.body)) for sub in self.commands() if sub.capability == "lock"]
        return [(shard, getattr(each, which)) for shard, each in sent if each.WhichOneof("command") == which]

    async def until(self, true: Callable[[], object], what: str) -> None:
        for _ in range(20_000):
            if true():
                return
            await passes(0.01)
        raise AssertionError(f"never: {what}")


@asynccontextmanager
async def living(**settings: Any) -> AsyncIterator[LockCluster]:
    cluster = LockCluster(**settings)
    cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


def in_time(scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs it in virtual time, an hour at most."""

    async def bounded() -> None:
        async with asyncio.timeout(3600):
            await scenario()

    run(bounded())
