"""Nodes that stop and start again one after the other: a client that retries sees no failure, and every write counts once."""

from __future__ import annotations

import asyncio

import pytest

from client.client import Client
from client.router import BROKEN_S
from cluster.errors import Code
from proto.gen import node_pb2
from tests.client.fake_cluster import FakeCluster, Fault
from tests.client.virtual_time import passes, run

ELECTION_S = 0.03  # of a leadership that is handed over


class Restarting(FakeCluster):
    """`restart` does to a node what SIGTERM and a new start do, as its clients see it."""

    def __init__(self, shards: int, nodes: int = 3) -> None:
        super().__init__(shards=shards, nodes=nodes)
        self.moving: set[int] = set()
        self.stopping: set[str] = set()
        self.refuse = self._refuse

    def _refuse(self, node: str, sub: node_pb2.SubRequest) -> node_pb2.SubReply | None:
        """While a shard's leadership is on its way nobody has it, and the old leader answers as one that lost it."""
        if sub.shard not in self.moving or sub.consistency == node_pb2.STALE:
            return None
        old = self.leaders[sub.shard]
        code = Code.UNKNOWN_OUTCOME if node == old and sub.mode == node_pb2.COMMAND else Code.NOT_LEADER
        return node_pb2.SubReply(code=code, leader="" if node == old else old)

    async def restart(self, node: str, down_s: float, *, abrupt: bool = False) -> None:
        """`abrupt`: the process is gone as soon as the last leadership is."""
        others = [member.node for member in self.map.members if member.node != node]
        self.stopping.add(node)
        for number, shard in enumerate([shard for shard in self.worlds if self.leaders[shard] == node]):
            self.moving.add(shard)
            await passes(ELECTION_S)
            self.move(shard, others[number % len(others)])
            self.moving.remove(shard)
        if not abrupt:
            self.drain(node)
            await passes(0.05)
        self.down.add(node)
        self.break_streams(node)
        await passes(down_s)
        self.stopping.remove(node)
        self.draining.discard(node)
        self.down.remove(node)


@pytest.mark.parametrize("down_s", [0.02, 0.3])
@pytest.mark.parametrize("lost", [Fault.NONE, Fault.LOSE_REPLY, Fault.LOSE_REQUEST])
@pytest.mark.parametrize("abrupt", [False, True])
def test_rolling_restarts_fail_no_operation_and_double_none(down_s: float, lost: Fault, abrupt: bool) -> None:
    """With `lost` calls to a node that is stopping break: done or not, nobody can tell."""

    async def scenario() -> None:
        cluster = Restarting(shards=4)
        cluster.faults = lambda node, request: lost if node in cluster.stopping else Fault.NONE
        loop = asyncio.get_running_loop()
        keys = [cluster.key_in(1 + number % 4, number // 4) for number in range(8)]
        counted = dict.fromkeys(keys, 0)
        taken: list[float] = []
        stopped = False

        async def load(client: Client, key: bytes) -> None:
            while not stopped:
                start = loop.time()
                counted[key] += 1
                assert await client.kv.increment(key) == counted[key]
                found = await client.kv.get(key)
                assert found is not None and int(found.value) == counted[key]
                assert await client.kv.get(key, consistency="stale") is not None
                taken.append(loop.time() - start)
                await passes(0.01)

        async with cluster.client() as client:
            loads = [asyncio.ensure_future(load(client, key)) for key in keys]
            await passes(0.1)
            for node in ("n1", "n2", "n3"):
                await cluster.restart(node, down_s, abrupt=abrupt)
                await passes(0.1)
            stopped = True
            await asyncio.gather(*loads)
        assert [int(cluster.value(key) or b"0") for key in keys] == list(counted.values())
        assert max(taken) < 0.5

    run(scenario())


def test_a_watch_and_a_scan_go_on_over_restarts() -> None:
    async def scenario() -> None:
        cluster = Restarting(shards=2)
        async with cluster.client() as client, client.kv.watch(prefix="r/") as watch:
            told: list[bytes] = []

            async def listen() -> None:
                while len(told) < 90:
                    told.append((await anext(watch)).key)

            async def write() -> None:
                for number in range(90):
                    await client.kv.put(f"r/{number:02}", b"v")
                    await passes(0.02)

            work = [asyncio.ensure_future(listen()), asyncio.ensure_future(write())]
            for node in ("n1", "n2", "n3"):
                await cluster.restart(node, 0.3)
                assert [item.key async for item in client.kv.scan(prefix="r/")] == sorted(
                    key for key in [b"r/%02d" % number for number in range(90)] if cluster.value(key) is not None
                )
            await asyncio.gather(*work)
            assert sorted(told) == [b"r/%02d" % number for number in range(90)]

    run(scenario())


def test_a_node_that_is_stopping_is_not_gone_back_to_on_the_word_of_others() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            old = cluster.leaders[1]
            cluster.drain(old)  # the others still name it
            cluster.calls.clear()
            put = asyncio.ensure_future(client.kv.put("k", b"w"))
            await passes(BROKEN_S / 2)
            asked = [node for node, _ in cluster.calls]
            assert asked.count(old) == 1 and len(asked) > 2
            cluster.move(1, next(node for node in ("n1", "n2", "n3") if node != old))
            await put

    run(scenario())
