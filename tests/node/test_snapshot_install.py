"""Snapshots between real nodes when one of the two dies or is deposed on the way."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.raft.messages import Message, MessageKind
from node.snapshots import Sending
from node.transport.snapshot_stream import Arriving
from proto.gen import kv_pb2, node_pb2, peer_pb2
from tests.node.cluster_world import ClusterWorld, Context
from tests.node.snapshot_world import SHORT_LOGS, one_falls_behind


async def every(sending: Sending) -> list[peer_pb2.SnapshotChunk]:
    """All chunks that a sender would send, whatever its core thinks."""
    chunks = []
    source = sending.source
    while (pairs := await source.read()) is not None:
        chunks.append(peer_pb2.SnapshotChunk(number=source.number - 1, pairs=pairs, crc=zlib.crc32(pairs)))
    return [*chunks, peer_pb2.SnapshotChunk(number=source.number, last=True, digest=source.digest)]


async def stream_of(chunks: list[peer_pb2.SnapshotChunk]) -> AsyncIterator[peer_pb2.SnapshotChunk]:
    for chunk in chunks:
        yield chunk


async def test_the_sender_dies_while_the_receiver_flushes() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        node = await world.start(late)
        flushing, go = asyncio.Event(), asyncio.Event()
        flush = node.state.flush

        async def slow() -> Any:
            flushing.set()
            await go.wait()
            return await flush()

        node.state.flush = slow  # type: ignore[method-assign]
        await flushing.wait()
        await world.crash([leader.config.node])
        go.set()
        await world.until(lambda: node.snapshots.installed == 1, "the install ends by itself")
        assert not node.stopped.done()
        assert (await world.put(b"k1", b"later")).code == 0
        replica = node.shards.replicas[1]
        await world.until(lambda: replica.core.applied_index == replica.core.commit_index, "applied")
        replica.applier.check_invariants()


async def test_an_install_whose_sender_died_is_not_mixed_with_the_next() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        sender = leader.shards.replicas[1]
        node = await world.start(late)
        receive = node.snapshots.receive

        async def refuse(*_: object) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
            yield peer_pb2.SnapshotReply(done=True, reason="driven by hand")

        node.snapshots.receive = refuse  # type: ignore[method-assign]
        replica = node.shards.replicas[1]
        message = Message(MessageKind.SNAPSHOT, sender.core.replica, replica.core.replica, sender.core.term)
        sending = await leader.snapshots._freeze(sender, message)
        header, chunks = sending.header, await every(sending)
        sending.source.close()

        async def answers(number: int) -> list[peer_pb2.SnapshotReply]:
            arriving = Arriving(stream_of(chunks), SHORT_LOGS)
            named = peer_pb2.SnapshotHeader(message=header.message, time_ms=header.time_ms, id=number)
            return [reply async for reply in receive(replica, leader.config.node, named, arriving)]

        until_free = asyncio.Event()
        holding = asyncio.ensure_future(node.pump.exclusively(until_free.wait))  # type: ignore[arg-type]
        first = asyncio.ensure_future(answers(1))
        await world.until(lambda: replica.installing and node.pump.jobs_waiting, "the install waits for the pump")
        first.cancel()
        (second,) = await answers(2)
        assert second.done and not second.accepted, "one install at a time, and the first is still under way"
        until_free.set()
        await holding
        await world.until(lambda: not replica.installing, "the first install ended")
        assert replica.state.applied_index >= header.message.index
        assert (await world.get(b"key-49", node=leader)).version > 0
        await world.crash([late], keep=True)
        again = await world.start(late)
        reborn = again.shards.replicas[1]
        await world.until(lambda: reborn.core.applied_index >= sender.core.commit_index, "caught up")
        assert reborn.state.digest() == sender.state.digest()


async def test_a_deposed_leader_sends_no_snapshot_in_its_successors_name() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        sender = leader.shards.replicas[1]
        other = next(peer for peer in sender.core.peers if sender.node_of[peer] != late)
        behind = next(peer for peer in sender.core.peers if sender.node_of[peer] == late)
        message = Message(MessageKind.SNAPSHOT, sender.core.replica, behind, sender.core.term)
        sender.core.transfer_leadership(other)
        sender.touch()
        await world.until(lambda: sender.core.leader == other, "handed over")
        with pytest.raises(TenfoldError) as refused:
            await leader.snapshots._freeze(sender, message)
        assert refused.value.code is Code.NOT_LEADER


async def test_a_replica_that_waits_for_its_snapshot_admits_its_age() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        written = asyncio.get_running_loop().time()
        node = await world.start(late)

        async def never(*_: object) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
            await asyncio.Event().wait()
            yield peer_pb2.SnapshotReply()

        node.snapshots.receive = never  # type: ignore[method-assign]
        replica = node.shards.replicas[1]
        beats = 0
        seen = replica.core.clock

        def heard_for_long() -> bool:
            nonlocal beats, seen
            beats += replica.core.clock != seen
            seen = replica.core.clock
            return beats >= 40  # ticks: two seconds of the leader's heartbeats

        await world.until(heard_for_long, "the leader's heartbeats arrive")
        sub = world.get_request(b"key-49", node_pb2.STALE)
        reply = (await node.service.call(node_pb2.CallRequest(requests=[sub]), Context())).replies[0]
        assert kv_pb2.KvAnswer.FromString(reply.body).items[0].version == 0, "it has not got the key"
        age_s = asyncio.get_running_loop().time() - written
        assert reply.stale_ms >= age_s * 1000
        assert leader.shards.replicas[1].leading
