"""What sends snapshots, between real nodes: how many at a time, what it lets go, and what it keeps for who catches up."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cluster.ports import StorageFailed
from cluster.raft.messages import Message, MessageKind
from node.replica import Replica
from tests.node.cluster_world import ClusterWorld
from tests.node.snapshot_world import SHORT_LOGS, Frozen, Tap, caught_up, generations, never, one_falls_behind


async def test_all_that_is_missing_comes_and_a_node_sends_no_more_at_a_time_than_it_may() -> None:
    limits = replace(SHORT_LOGS, snapshots_sending_max=1)
    async with asyncio.timeout(60), ClusterWorld(shards=3, limits=limits) as world:
        for shard in (1, 2, 3):
            await world.until(lambda shard=shard: world.leader(shard) is not None, "led")  # type: ignore[misc]
        late = world.names[-1]
        await world.crash([late], keep=True)
        for i in range(120):
            assert (await world.put(b"key-%d" % i, b"x" * 100)).code == 0
        leaders = [world.leader(shard) for shard in (1, 2, 3)]
        frozen = {node.config.node: Frozen(node) for node in leaders if node is not None}
        node = await world.start(late)
        tap = Tap(node)
        await world.until(lambda: node.snapshots.installed == 3, "all are installed")
        for shard in (1, 2, 3):
            leader = world.leader(shard)
            assert leader is not None
            await caught_up(world, node, leader, shard)
            assert len(generations(world, late, shard)) == 1
        assert {header.message.shard for header in tap.headers} == {1, 2, 3}
        assert sum(each.made for each in frozen.values()) == 3 and len(frozen) < 3, "somebody had to send two"
        await world.until(lambda: not any(each.open for each in frozen.values()), "let go")
        assert all(each.most == 1 for each in frozen.values()), "one after the other"


@pytest.mark.parametrize("how", ["stops", "is abandoned", "is deposed", "follower goes"])
async def test_what_is_frozen_is_let_go_when_the_leader(how: str) -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        frozen = Frozen(leader)
        node = await world.start(late)
        tap = Tap(node)
        tap.at = {7: never}
        await world.until(lambda: len(tap.taken) == 7, "in the middle")
        assert frozen.open == 1
        if how == "stops":
            await leader.stop()
            assert frozen.open == 0
        elif how == "is abandoned":
            await leader.abandon()
            assert frozen.open == 0
        elif how == "is deposed":
            replica = leader.shards.replicas[1]
            other = next(p for p in replica.core.peers if replica.node_of[p] not in (late, leader.config.node))
            replica.core.transfer_leadership(other)
            replica.touch()
            await world.until(lambda: replica.core.leader == other, "handed over")
            await world.crash([late], keep=True)
        else:
            await world.crash([late], keep=True)
            leader.shards.replicas[1].core.progress.pop(node.shards.replicas[1].core.replica)
        await world.until(lambda: frozen.open == 0, "let go")


async def test_a_follower_that_the_map_drops_before_its_snapshot_begins_costs_no_more_than_that() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        send, asked = leader.snapshots.send, asyncio.Event()

        def dropped(replica: Replica, message: Message) -> None:
            send(replica, message)
            replica.node_of = {peer: node for peer, node in replica.node_of.items() if node != late}
            asked.set()

        leader.snapshots.send = dropped  # type: ignore[method-assign]
        await world.start(late)
        await asked.wait()
        await world.until(lambda: leader.snapshots._open == leader.snapshots._active == 0, "given up")
        assert not leader.stopped.done() and (await world.put(b"k0", b"last")).code == 0


async def test_a_freeze_that_is_given_up_before_its_turn_freezes_nothing() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        frozen = Frozen(leader)
        held, until_free = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            held.set()
            await until_free.wait()

        holding = asyncio.ensure_future(leader.pump.exclusively(hold))
        await held.wait()
        replica = leader.shards.replicas[1]
        behind = next(peer for peer in replica.core.peers if replica.node_of[peer] == late)
        message = Message(MessageKind.SNAPSHOT, replica.core.replica, behind, replica.core.term)
        freezing = asyncio.ensure_future(leader.snapshots._freeze(replica, message))
        await world.until(lambda: leader.pump.jobs_waiting > 0, "it waits for its turn")
        made = frozen.made
        freezing.cancel()
        await asyncio.gather(freezing, return_exceptions=True)
        until_free.set()
        await holding
        await leader.pump.exclusively(done)
        assert frozen.made == made


async def done() -> None:
    return None


async def test_a_node_far_behind_catches_up_under_load() -> None:
    """By one snapshot: what is written while that is on its way stays in the leader's log until the node has it."""
    limits = replace(SHORT_LOGS, snapshot_bytes_per_s=32 * 1024)
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=limits) as world:
        leader, late = await one_falls_behind(world, writes=200)
        core = leader.shards.replicas[1].core
        stopped, written = False, 0

        async def write() -> None:
            nonlocal written
            while not stopped:
                assert (await world.put(b"key-%d" % (written % 200), b"y" * 100)).code == 0
                written += 1

        node = await world.start(late)
        writing = [asyncio.ensure_future(write()) for _ in range(4)]
        behind = node.shards.replicas[1].core.replica
        await world.until(lambda: node.snapshots.installed == 1, "installed")
        at_install = written
        await world.until(lambda: core.caught_up(behind), "caught up")
        await world.until(lambda: written > at_install + 200, "it stays so while the load goes on")
        assert core.caught_up(behind) and node.snapshots.installed == 1 and leader.snapshots.sent == 1
        assert at_install > 10 * limits.log_entries_kept_max, "the log would not have reached back so far"
        stopped = True
        await asyncio.gather(*writing)
        await caught_up(world, node, leader)
        await world.until(lambda: core.log.last_index - core.log.base_index <= 16, "nothing more is kept")


@pytest.mark.parametrize("where", ["leader", "late"])
async def test_a_node_whose_storage_fails_on_the_way_stops(where: str) -> None:
    """Where it is read as where it is written; the other end is told, and may go on."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=SHORT_LOGS) as world:
        leader, late = await one_falls_behind(world)
        node = await world.start(late)
        rotten = leader if where == "leader" else node
        engine: Any = rotten.state.engine
        write, snapshot = engine.write, engine.snapshot

        def fail(key: bytes) -> None:
            if key.startswith(b"d\0\1\0\0\0\1" if rotten is node else b"d\0\1\0\0\0\0"):
                raise StorageFailed("bad sector")

        def failing_write(batch: Any) -> bool:
            for key in batch:
                fail(key)
            return bool(write(batch))

        def failing_snapshot() -> Any:
            frozen = snapshot()
            scan = frozen.scan

            def failing_scan(start: bytes, end: bytes) -> Any:
                for pair in scan(start, end):
                    fail(pair[0])
                    yield pair

            frozen.scan = failing_scan
            return frozen

        if rotten is node:
            engine.write = failing_write
        else:
            engine.snapshot = failing_snapshot
        error = await rotten.stopped
        assert isinstance(error, StorageFailed) and str(error) == "bad sector"
        other = node if rotten is leader else leader
        assert not other.stopped.done() and node.snapshots.installed == 0
