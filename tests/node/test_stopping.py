"""A node that stops hands over first: who retries notices nothing, and nobody hands anything back to it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from client.client import Client
from cluster.errors import Code, TenfoldError
from cluster.raft.messages import Message, MessageKind
from cluster.types import Role
from proto.gen import node_pb2
from tests.node.cluster_world import FAST, ClusterWorld


class Load:
    """Callers that write and read without a pause; a failed operation is kept."""

    def __init__(self, client: Client, callers: int) -> None:
        self.failed: list[str] = []
        self.done = 0
        self._client = client
        self._going = True
        self._tasks = [asyncio.ensure_future(self._call(caller)) for caller in range(callers)]

    async def _call(self, caller: int) -> None:
        count = 0
        while self._going:
            try:
                count += 1
                await self._client.kv.put(f"key-{caller}", str(count))
                found = await self._client.kv.get(f"key-{caller}")
                assert found is not None and found.value == str(count).encode(), f"{found} after {count}"
            except TenfoldError as error:
                self.failed.append(f"{error.code.name}: {error.message}")
            self.done += 1

    async def end(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)


async def test_a_rolling_restart_fails_no_operation() -> None:
    async with (
        asyncio.timeout(120),
        ClusterWorld(shards=4, limits=FAST) as world,
        Client([member.address for member in world.members]) as client,
    ):
        load = Load(client, 8)
        for name in world.names:
            before = load.done
            await world.until(lambda before=before: load.done > before + 50, "the load runs")
            await world.stop(name)
            before = load.done
            await world.until(lambda before=before: load.done > before + 50, "it runs without the node")
            node = await world.start(name)
            others = len(world.names) - 1
            await world.until(lambda node=node, others=others: len(node.peers.up()) == others, "it is back")
        await load.end()
        assert load.failed == [] and load.done > 300


async def test_who_is_stopping_is_handed_nothing() -> None:
    """The preferred leader stops slowly: the one it handed over to keeps the shard, though it would hand it back at once."""
    limits = replace(FAST, prefer_after_ms=1)
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=limits) as world:
        await world.put(b"k", b"1")
        first = world.row(1).replicas[0].node
        await world.until(lambda: (node := world.leader(1)) is not None and node.config.node == first, "it leads")
        node = world.nodes[first]
        node.upkeep.stopping = True
        replica = node.shards.replicas[1]
        replica.core.transfer_leadership(world.row(1).replicas[1].id)
        replica.touch()
        await world.until(lambda: world.leader(1, but=first) is not None and not replica.leading, "another leads")
        heir = world.leader(1, but=first)
        assert heir is not None
        term = heir.shards.replicas[1].core.term
        looks: list[float] = []
        look = heir.upkeep._reconciler.look
        heir.upkeep._reconciler.look = lambda now, up: (looks.append(now), look(now, up))[1]  # type: ignore
        await world.until(lambda: len(looks) > 10 and looks[-1] - looks[0] > 1.0, "its leader looked often enough")
        assert heir.shards.replicas[1].leading and heir.shards.replicas[1].core.term == term
        node.upkeep.stopping = False
        await world.until(lambda: replica.leading, "once it does not stop any more it is preferred again")


async def test_while_it_hands_over_it_tells_where_to_go() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.put(b"k", b"1")
        node = world.leader(1)
        assert node is not None
        hints: list[tuple[int, str]] = []
        node.begin_stop()
        while not node.service.draining:
            sub = world.get_request(b"k", node_pb2.LINEARIZABLE)
            reply = await world.call(sub, node=node)
            hints.append((reply.code, reply.leader))
            await asyncio.sleep(0.01)
        assert await node.stopped is None
        del world.nodes[node.config.node]
        heir = world.leader(1)
        assert heir is not None
        assert {code for code, _ in hints} <= {Code.OK, Code.NOT_LEADER}
        assert hints[-1] == (Code.NOT_LEADER, heir.config.node)


async def test_a_node_alone_stops_at_once() -> None:
    async with asyncio.timeout(30), ClusterWorld(nodes=1, shards=1, limits=FAST) as world:
        await world.put(b"k", b"1")
        loop = asyncio.get_running_loop()
        started = loop.time()
        await world.stop("n1")
        assert loop.time() - started < 1.5, "there is nobody to wait for"
        await world.start("n1")
        assert (await world.get(b"k")).value == b"1"


async def test_the_preferred_replica_comes_to_lead() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=3, limits=FAST) as world:
        await world.fill()
        for name in world.names:
            await world.stop(name)
            await world.start(name)
        for shard in range(4):
            first = world.row(shard).replicas[0].node
            await world.until(
                lambda shard=shard, first=first: (
                    (node := world.leader(shard)) is not None and node.config.node == first
                ),
                f"{first} leads shard {shard}",
            )
        await world.check()


async def test_who_was_deposed_a_moment_ago_stops_like_any_other() -> None:
    """Its core follows already, and the node has not looked at it since."""
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"1")
        node = world.leader(1)
        assert node is not None
        replica = node.shards.replicas[1]
        core = replica.core
        stop = asyncio.ensure_future(node.stop())
        core.step(Message(MessageKind.HEARTBEAT, core.peers[0], core.replica, core.term + 1))
        assert replica.leading and core.role is Role.FOLLOWER
        await stop
        assert node.stopped.result() is None
