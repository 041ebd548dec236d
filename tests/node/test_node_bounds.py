"""What waits in a node is bounded and let go; what two do at once does not break it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from cluster.errors import Code
from cluster.limits import DEFAULT
from proto.gen import kv_pb2, meta_pb2, node_pb2
from tests.node.cluster_world import ClusterWorld, Context


async def test_closed_watches_leave_nothing_on_an_idle_shard() -> None:
    async with asyncio.timeout(30), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"v")
        leader = world.leader(1)
        assert leader is not None
        replica = leader.shards.replicas[1]
        await world.until(lambda: replica.core.silent, "idle")
        for _ in range(20):
            request = node_pb2.WatchRequest(shard=1, shard_version=1, from_now=True)
            watch = leader.service.watch(request, Context())
            await anext(watch)
            waiting = asyncio.ensure_future(anext(watch))  # type: ignore[arg-type]
            await world.until(lambda: len(replica._watchers) > 0, "it waits")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await watch.aclose()  # type: ignore[attr-defined]
            assert not replica._watchers


async def test_reads_are_bounded_while_the_engine_stalls() -> None:
    limits = replace(DEFAULT, reads_pending_max=10)
    async with asyncio.timeout(30), ClusterWorld(shards=1, limits=limits) as world:
        await world.put(b"k", b"v")
        leader = world.leader(1)
        assert leader is not None
        replica = leader.shards.replicas[1]
        world.states[leader.config.node].stalled = True

        async def ask(sub: node_pb2.SubRequest) -> node_pb2.SubReply:
            request = node_pb2.CallRequest(requests=[sub], deadline_ms=100)
            return (await leader.service.call(request, Context())).replies[0]

        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"2")]).SerializeToString()
        for _ in range(3):
            await ask(world.command(b"k", body))
        codes: set[int] = set()
        for _ in range(6):
            replies = await asyncio.gather(*[ask(world.get_request(b"k")) for _ in range(8)])
            codes |= {reply.code for reply in replies}
            held = len(replica._reads) + sum(map(len, replica._confirming.values()))
            held += sum(len(reads) for _, reads in replica._confirmed)
            assert held == replica._pending_reads <= 10
        assert Code.OVERLOADED in codes
        world.states[leader.config.node].stalled = False
        await world.until(lambda: replica._pending_reads == 0, "let go")
        assert (await world.get(b"k")).version > 0


async def test_answers_of_one_call_fit_a_message() -> None:
    async with asyncio.timeout(40), ClusterWorld(shards=1) as world:
        large = b"v" * (1_000_000)
        for key in (b"a", b"b"):
            await world.put(key, large)
        leader = world.leader(1)
        assert leader is not None
        reads = [kv_pb2.KvOp(kind=kv_pb2.KvOp.GET, key=key) for key in (b"a", b"b")]
        request = node_pb2.CallRequest()
        for i in range(10):
            write = kv_pb2.KvOp(key=b"w%d" % i, value=b"1")
            body = kv_pb2.KvCommand(transaction=kv_pb2.KvTransaction(then_ops=[*reads, write])).SerializeToString()
            request.requests.append(world.command(b"a", body))
        reply = await leader.service.call(request, Context())
        assert reply.ByteSize() < DEFAULT.message_bytes_max
        assert {each.code for each in reply.replies} == {0, Code.UNKNOWN_OUTCOME}


async def test_two_newer_maps_at_once() -> None:
    async with asyncio.timeout(30), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"v")
        node = world.nodes["n1"]
        world.sync_s = {"n1": 0.05}
        newer = [meta_pb2.ShardMap(), meta_pb2.ShardMap()]
        for ahead, each in enumerate(newer):
            each.CopyFrom(node.map.current)
            each.epoch += 10 + ahead
        await asyncio.gather(*[node.map.update(each) for each in newer])
        assert node.map.epoch == newer[1].epoch


async def test_a_map_that_changes_while_the_last_is_being_told_is_told_next() -> None:
    async with asyncio.timeout(30), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"v")
        node = world.nodes["n1"]
        watch = node.service.watch_map(node_pb2.MapRequest(), Context())
        first = await anext(watch)
        newer = meta_pb2.ShardMap()
        newer.CopyFrom(node.map.current)
        newer.epoch = first.epoch + 10
        await node.map.update(newer)
        assert (await anext(watch)).epoch == newer.epoch
