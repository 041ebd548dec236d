"""A shard moves: the map says what is wanted, the leader brings the group there, the map is settled, the old replica goes."""

from __future__ import annotations

import asyncio

from proto.gen import meta_pb2
from tests.node.cluster_world import FAST, ClusterWorld, holds_nothing


async def test_a_replica_moves_to_another_node() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        before = world.row(1)
        leaver = before.replicas[-1]
        target = world.spare()
        added = await world.add(1, target, leaver.id)
        await world.settle(1)
        row = world.row(1)
        assert {each.node for each in row.replicas} == {each.node for each in before.replicas} - {leaver.node} | {
            target
        }
        node = world.nodes[target]
        await world.until(lambda: holds_nothing(world.nodes[leaver.node]), "the old replica is dropped")
        leader = world.leader(1)
        assert leader is not None
        core = leader.shards.replicas[1].core
        assert (
            set(core.configuration.voters) == {each.id for each in row.replicas} and added in core.configuration.voters
        )
        await world.until(lambda: node.shards.replicas[1].core.applied_index == core.commit_index, "it has all")
        assert node.shards.replicas[1].state.digest() == leader.shards.replicas[1].state.digest()
        await world.check()
        for each in world.nodes.values():
            await each.upkeep.flush_now()
        await world.crash(list(world.names))
        for name in world.names:
            await world.start(name)
        for each in row.replicas:
            found = world.nodes[each.node].shards.replicas[1].core.configuration
            assert set(found.voters) == {each.id for each in row.replicas}, "kept with the state"
        assert holds_nothing(world.nodes[leaver.node]) and added == world.nodes[target].shards.replica_of(1)
        await world.check()


async def test_the_leader_itself_moves() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        leader = world.leader(1)
        assert leader is not None
        leaver = leader.shards.replica_of(1)
        await world.add(1, world.spare(), leaver)
        await world.settle(1)
        await world.until(lambda: holds_nothing(leader), "the old leader's replica is dropped")
        await world.check()


async def test_a_shard_with_one_replica_moves() -> None:
    """Nobody but the new one can take over; the old one goes once it is told."""
    async with asyncio.timeout(60), ClusterWorld(nodes=2, shards=1, replicas=1, limits=FAST) as world:
        await world.fill()
        leaver, target = world.row(1).replicas[0], world.spare()
        await world.add(1, target, leaver.id)
        await world.settle(1)
        assert [each.node for each in world.row(1).replicas] == [target]
        await world.until(lambda: holds_nothing(world.nodes[leaver.node]), "the old replica is dropped")
        await world.check()


async def test_a_group_grows_and_shrinks() -> None:
    """As meta does from three members to five and back."""
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        added = await world.add(1, world.spare())
        await world.settle(1)
        assert len(world.row(1).replicas) == 4
        leader = world.leader(1)
        assert leader is not None and added in leader.shards.replicas[1].core.configuration.voters
        leaving = leader.shards.replica_of(1)
        await world.change(
            retire_replica=meta_pb2.RetireReplica(shard=1, version=world.row(1).version, replica=leaving)
        )
        await world.settle(1)
        assert len(world.row(1).replicas) == 3
        await world.until(lambda: holds_nothing(leader), "the retired replica is dropped")
        await world.check()


async def test_meta_itself_moves() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        leader = world.leader(0)
        assert leader is not None
        await world.add(0, world.spare(0), leader.shards.replica_of(0))
        await world.settle(0)
        await world.until(lambda: holds_nothing(leader, 0), "the old meta leader's replica is dropped")
        told = meta_pb2.Member(node="n1", address=world.addresses["n1"], zone="east")
        changed = await world.change(set_member=told)
        for node in world.nodes.values():
            await world.until(lambda node=node: node.map.epoch >= changed.epoch, "all follow the new meta group")
