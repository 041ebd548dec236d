"""Snapshots between real nodes over streams that break, change and end: each chunk is taken once, and nothing is left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from cluster.ports import ChannelBroken
from node.app import Node
from proto.gen import peer_pb2
from tests.node.cluster_world import ClusterWorld
from tests.node.snapshot_world import SHORT_LOGS, Frozen, Line, Tap, caught_up, generations, never, one_falls_behind


def half_of(node: Node) -> bytes:
    """The generation under which a snapshot of shard 1 arrives."""
    return node.snapshots.installs._halves[1].sink.generation.to_bytes(4, "big")


def broken() -> None:
    raise ChannelBroken("the line was cut")


def no_way(address: str) -> Any:
    class Nowhere:
        def stream(self, service: str, method: str) -> Any:
            raise ChannelBroken("no way to it", sent=False)

        async def close(self) -> None: ...

    return Nowhere()


async def test_it_goes_on_where_the_stream_broke() -> None:
    """At the sender's end and at the receiver's; what was taken is never sent again."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        cuts = [4, 21]

        def cut(chunk: peer_pb2.SnapshotChunk, stream: Any) -> None:
            if cuts and chunk.number == cuts[0]:
                cuts.pop(0)
                stream.cancel()

        Line(leader, cut)
        frozen = Frozen(leader)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {9: broken, 15: broken}
        await world.until(lambda: node.snapshots.installed == 1, "installed")
        assert tap.taken == list(range(len(tap.taken))) and len(tap.taken) > 24
        assert tap.begins[0] == 0 and 9 in tap.begins and 15 in tap.begins and len(tap.begins) == 5
        assert len({header.id for header in tap.headers}) == 1 and frozen.made == 1
        assert leader.status().counters["snapshots_resumed"] == sum(begin > 0 for begin in tap.begins) >= 3
        await world.until(lambda: leader.status().counters["snapshots_sent"] == 1, "the sender knows")
        await caught_up(world, node, leader)
        assert frozen.open == 0 and len(generations(world, late)) == 1


async def test_a_stream_that_breaks_while_it_is_installed_changes_nothing() -> None:
    """The sender asks again, and is told of that very install or by the core; nothing comes twice, no other one is made."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        frozen, streams = Frozen(leader), []

        def watch(chunk: peer_pb2.SnapshotChunk, stream: Any) -> None:
            if stream not in streams:
                streams.append(stream)

        Line(leader, watch)
        node = await world.start(late)
        tap = Tap(node)
        flushing, go = asyncio.Event(), asyncio.Event()
        flush = node.state.flush

        async def slow() -> Any:
            flushing.set()
            await go.wait()
            return await flush()

        node.state.flush = slow  # type: ignore[method-assign]
        await world.until(lambda: node.shards.replicas[1].installing, "it is whole")
        await flushing.wait()
        streams[0].cancel()
        await world.until(lambda: len(tap.headers) == 2, "the sender asks again")
        go.set()
        await world.until(lambda: node.snapshots.installed == 1, "installed")
        await world.until(lambda: frozen.open == 0, "let go")
        assert frozen.made == 1 and all(reply.accepted for reply in tap.last)
        assert tap.taken == list(range(len(tap.taken)))
        await caught_up(world, node, leader)


async def test_a_chunk_that_is_damaged_on_the_way_comes_again() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        damaged: list[int] = []

        def damage(chunk: peer_pb2.SnapshotChunk, stream: Any) -> None:
            if chunk.number == 5 and not damaged:
                damaged.append(5)
                chunk.pairs = chunk.pairs[:-1] + bytes([chunk.pairs[-1] ^ 1])

        Line(leader, damage)
        node = await world.start(late)
        tap = Tap(node)
        await world.until(lambda: node.snapshots.installed == 1, "installed")
        assert damaged and tap.begins == [0, 5] and tap.taken == list(range(len(tap.taken)))
        await caught_up(world, node, leader)


async def test_what_does_not_match_its_digest_is_thrown_away() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        damaged: list[int] = []

        def damage(chunk: peer_pb2.SnapshotChunk, stream: Any) -> None:
            if chunk.last and not damaged:
                damaged.append(chunk.number)
                chunk.digest ^= 1

        Line(leader, damage)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {7: lambda: halves.append(half_of(node))}
        halves: list[bytes] = []
        left: list[set[bytes]] = []
        tap.on_last = lambda: left.append(generations(world, late))
        await world.until(lambda: bool(tap.last), "refused")
        assert not tap.last[0].accepted and "digest" in tap.last[0].reason
        assert halves[0] not in left[0], "the next one may come under the same number, but not with these pairs"
        await world.until(lambda: node.snapshots.installed == 1, "the next one is installed")
        assert tap.begins == [0, 0] and len({header.id for header in tap.headers}) == 2
        await caught_up(world, node, leader)


async def test_a_receiver_that_restarts_begins_anew_with_the_same_snapshot() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        frozen = Frozen(leader)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {7: never}
        await world.until(lambda: len(tap.taken) == 7, "in the middle")
        await world.crash([late], keep=True)
        node = await world.start(late)
        again = Tap(node)
        await world.until(lambda: node.snapshots.installed == 1, "installed")
        assert again.begins == [0] and again.taken == list(range(len(again.taken)))
        assert again.headers[0].id == tap.headers[0].id and frozen.made == 1
        await caught_up(world, node, leader)
        assert len(generations(world, late)) == 1


async def test_a_new_leader_sends_its_own() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {7: never}
        await world.until(lambda: len(tap.taken) == 7, "in the middle")
        half = half_of(node)
        assert half in generations(world, late)
        await world.crash([leader.config.node])
        await world.until(lambda: world.leader(1) is not None, "another leads")
        successor = world.leader(1)
        assert successor is not None
        await world.until(lambda: node.snapshots.installed == 1, "installed")
        assert tap.begins == [0, 0] and len({header.hello.node for header in tap.headers}) == 2
        assert (await world.put(b"k1", b"later")).code == 0
        await caught_up(world, node, successor)
        assert len(generations(world, late)) == 1


async def test_a_deposed_leader_does_not_keep_its_successor_out() -> None:
    """Its stream may stand for long after that."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {7: never}
        await world.until(lambda: len(tap.taken) == 7, "in the middle")
        core = leader.shards.replicas[1].core
        other = next(peer for peer in core.peers if leader.shards.replicas[1].node_of[peer] != late)
        core.transfer_leadership(other)
        leader.shards.replicas[1].touch()
        await world.until(lambda: core.leader == other, "handed over")
        await world.until(lambda: node.snapshots.installed == 1, "the successor's is installed")
        assert tap.begins == [0, 0] and tap.last[-1].accepted
        successor = world.leader(1)
        assert successor is not None and tap.headers[-1].hello.node == successor.config.node
        await caught_up(world, node, successor)
        assert len(generations(world, late)) == 1


async def test_what_nobody_goes_on_with_is_deleted() -> None:
    limits = replace(SHORT_LOGS, snapshot_resume_ms=300)
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=limits) as world:
        leader, late = await one_falls_behind(world)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {7: broken}
        await world.until(lambda: len(tap.taken) == 7, "in the middle")
        leader.peers._dial = no_way
        leader.peers._bulk.clear()
        half = half_of(node)
        assert half in generations(world, late)
        await world.until(lambda: half not in generations(world, late), "the half is deleted")
        assert node.snapshots.installed == 0 and not node.snapshots.installs._halves
        assert leader.snapshots.sent == 0


async def test_a_replica_that_goes_takes_what_came_for_it_along() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        _, late = await one_falls_behind(world)
        node = await world.start(late)
        tap = Tap(node)
        go = asyncio.Event()
        tap.at = {7: go.wait}
        await world.until(lambda: len(tap.taken) == 7, "in the middle")
        half = half_of(node)
        assert half in generations(world, late)
        replica = node.shards.replicas[1]
        node.snapshots.forget(replica)
        assert half not in generations(world, late)
        go.set()
        await world.until(lambda: bool(tap.last), "told")
        assert not tap.last[0].accepted and tap.last[0].reason == "nobody wants it any more"
        assert half not in generations(world, late)
        tap.at = {len(tap.taken) + 7: lambda: node.shards.replicas.pop(1) and None}
        await world.until(lambda: len(tap.last) == 2, "told again, though nobody said that it went")
        assert tap.last[1].reason == "nobody wants it any more"
        assert half in generations(world, late), "whoever took it away deletes all that was the shard's"
