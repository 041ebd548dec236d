"""A replica that is not to be trusted is reported, stays out, and is rebuilt under a new id in its place."""

from __future__ import annotations

import asyncio

from cluster.errors import Code
from node.app import Node
from proto.gen import node_pb2
from tests.node.cluster_world import FAST, ClusterWorld


async def damaged(world: ClusterWorld, name: str) -> Node:
    """The node again, after a bit of one of the shard's entries in its log has turned."""
    leader = world.leader(1)
    assert leader is not None
    last = leader.shards.replicas[1].core.commit_index
    await world.until(lambda: world.nodes[name].shards.replicas[1].core.applied_index >= last, "it has all")
    await world.crash([name])
    disk = world.disks[name]
    path = next(path for path in sorted(disk.names) if path.startswith("log/") and b"value-7" in disk.names[path].data)
    disk.flip(path, disk.names[path].data.index(b"value-7") * 8)
    return await world.start(name)


def follower(world: ClusterWorld) -> str:
    leader = world.leader(1)
    assert leader is not None
    return next(each.node for each in world.row(1).replicas if each.node != leader.config.node)


def row_of(node: Node) -> node_pb2.ReplicaStatus:
    return next(row for row in node.status().replicas if row.shard == 1)


async def test_a_damaged_replica_is_reported_and_rebuilt_in_its_place() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        victim = follower(world)
        bad = world.nodes[victim].shards.replica_of(1)
        node = await damaged(world, victim)
        told = row_of(node)
        assert (told.role, told.replica) == ("quarantined", bad) and "damaged" in told.quarantine
        assert set(node.shards.quarantined) == {1}, "the other shard's entries are good"
        reply = await world.call(world.get_request(b"key-1", node_pb2.STALE), node=node)
        assert reply.code == Code.QUARANTINED
        for other in world.nodes.values():
            if other is not node:
                told_by = other.events.told
                await world.until(
                    lambda told_by=told_by: victim in told_by and told_by[victim].quarantined == 1, "told"
                )
        added = await world.add(1, victim, bad)
        await world.until(lambda: node.shards.replica_of(1) == added, "the new one has begun in its place")
        await world.settle(1)
        replica = node.shards.replicas[1]
        await world.until(lambda: replica.core.applied_index == replica.core.commit_index, "it has all")
        assert not node.shards.quarantined and row_of(node).voters and added in row_of(node).voters
        leader = world.leader(1)
        assert leader is not None
        await world.until(
            lambda: replica.core.applied_index == leader.shards.replicas[1].core.applied_index, "it has caught up"
        )
        assert replica.state.digest() == leader.shards.replicas[1].state.digest()
        await world.crash([victim])
        assert (await world.start(victim)).shards.replica_of(1) == added
        await world.check()


async def test_a_crash_while_it_is_rebuilt_changes_nothing() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        victim = follower(world)
        bad = world.nodes[victim].shards.replica_of(1)
        await damaged(world, victim)
        added = await world.add(1, victim, bad)
        settling = asyncio.ensure_future(world.settle(1))
        for _ in range(3):
            await world.until(lambda: world.nodes[victim].shards.replica_of(1) == added, "the new one has begun")
            await world.crash([victim], keep=True)
            await world.start(victim)
        await settling
        node = world.nodes[victim]
        assert node.shards.replica_of(1) == added and not node.shards.quarantined
        await world.check()


async def test_a_quarantined_replica_stays_so_after_a_restart() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        victim = follower(world)
        first = row_of(await damaged(world, victim))
        await world.crash([victim])
        again = row_of(await world.start(victim))
        assert (again.replica, again.quarantine) == (first.replica, first.quarantine)
        await world.check()
