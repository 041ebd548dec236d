"""Three real nodes in one process: what is acknowledged survives a power cut of all of them, and the like."""

from __future__ import annotations

import asyncio

from cluster.errors import Code
from proto.gen import kv_pb2, node_pb2
from tests.node.cluster_world import ClusterWorld


async def test_put_and_get() -> None:
    async with asyncio.timeout(30), ClusterWorld() as world:
        reply = await world.put(b"a", b"1")
        assert reply.code == 0 and reply.index > 0
        found = await world.get(b"a")
        assert (found.value, found.version) == (b"1", reply.index)


async def test_acknowledged_is_fsynced_on_a_majority() -> None:
    """A power cut of all nodes at the very moment of the acknowledgement loses nothing that was acknowledged."""
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"first", b"0")
        world.sync_s = 0.05  # what is acknowledged before its sync is acknowledged long before it
        for attempt in range(3):
            key = b"key-%d" % attempt
            reply = await world.put(key, b"value")
            assert reply.code == 0
            await world.crash(list(world.names))
            for name in world.names:
                await world.start(name)
            found = await world.get(key)
            assert found.version == reply.index, f"acknowledged at {reply.index} and lost"


async def test_a_retry_is_applied_once_even_after_all_restarted() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        opened = await world.call(
            node_pb2.SubRequest(shard=1, shard_version=1, capability="kv", mode=node_pb2.OPEN_SESSION)
        )
        assert opened.session > 0
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(kind=kv_pb2.KvOp.INCREMENT, key=b"n", delta=1)]).SerializeToString()
        sub = world.command(b"n", body, session=opened.session, sequence=1)
        first = await world.call(sub)
        assert kv_pb2.KvResult.FromString(first.body).ops[0].number == 1
        await world.crash(list(world.names))
        for name in world.names:
            await world.start(name)
        again = await world.call(sub)
        assert again.code == 0, again
        assert kv_pb2.KvResult.FromString(again.body).ops[0].number == 1
        assert (await world.get(b"n")).value == b"1"


async def test_a_request_is_refused_where_it_does_not_belong() -> None:
    async with asyncio.timeout(30), ClusterWorld() as world:
        await world.put(b"a", b"1")
        sub = world.get_request(b"a")
        leader = world.leader(sub.shard)
        assert leader is not None
        follower = next(node for node in world.nodes.values() if node is not leader)
        reply = await world.call(sub, node=follower)
        assert reply.code == Code.NOT_LEADER and reply.leader == leader.config.node
        for version, code in ((0, Code.STALE_MAP), (2, Code.MAP_BEHIND)):
            sub.shard_version = version
            assert (await world.call(sub, node=leader)).code == code
        sub.shard_version, sub.shard = 1, 99
        assert (await world.call(sub, node=leader)).code == Code.WRONG_SHARD
