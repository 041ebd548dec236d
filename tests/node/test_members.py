"""Members go: one that is removed is neither heard nor answered, learns of it, and gives up what it has."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from proto.gen import meta_pb2
from tests.node.cluster_world import FAST, ClusterWorld, holds_nothing

CALM = replace(FAST, prefer_after_ms=60_000)
"""Leaders stay where they are unless somebody disturbs them."""


async def removed_while_away(world: ClusterWorld) -> str:
    """A node that was dead while its replicas were moved and it was removed. It knows nothing of that."""
    leaders = {node.config.node for shard in (0, 1) if (node := world.leader(shard)) is not None}
    gone = next(each for each in world.row(1).replicas if each.node not in leaders)
    await world.crash([gone.node], keep=True)
    for shard in (0, 1):
        held = next((each for each in world.row(shard).replicas if each.node == gone.node), None)
        if held is not None:
            await world.add(shard, world.spare(shard), held.id)
            await world.settle(shard)
    await world.change(remove_member=gone.node)
    for node in world.nodes.values():
        await world.until(lambda node=node: not node.peers.known(gone.node), "it is forgotten")
    return gone.node


async def test_a_removed_node_that_comes_back_disturbs_nobody_and_gives_up_what_it_has() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=CALM) as world:
        await world.fill()
        gone = await removed_while_away(world)
        leaders = {shard: world.leader(shard) for shard in (0, 1)}
        assert all(leaders.values())
        terms = {shard: node.shards.replicas[shard].core.term for shard, node in leaders.items() if node is not None}
        back = await world.start(gone)
        assert back.shards.replica_of(1), "it still has what it had"
        await world.until(lambda: back.map.epoch == world.map().epoch, "it learns the map from those who refuse it")
        await world.until(lambda: holds_nothing(back, 1) and holds_nothing(back, 0), "it gives up what it has")
        assert back.peers.members() == [] and gone not in back.map.addresses()
        for shard, node in leaders.items():
            assert node is not None
            assert node.shards.replicas[shard].leading and node.shards.replicas[shard].core.term == terms[shard]
        await world.check()


async def test_a_removed_node_that_hears_nothing_of_it_is_not_heard() -> None:
    """It campaigns for its shards as long as it likes."""
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=CALM) as world:
        await world.fill()
        gone = await removed_while_away(world)
        leader = world.leader(1)
        assert leader is not None
        term = leader.shards.replicas[1].core.term
        dropped = leader.shards.replicas[1].dropped_messages
        back = await world.start(gone)
        back.events.on_newer_map = lambda address: None  # type: ignore[method-assign]
        replica = back.shards.replicas[1]
        await world.until(lambda: replica.core.role == "pre-candidate", "it campaigns")
        await world.check()
        assert leader.shards.replicas[1].leading and leader.shards.replicas[1].core.term == term
        assert leader.shards.replicas[1].dropped_messages == dropped
        assert back.peers.up() == []


async def test_a_member_that_moves_is_dialled_where_the_map_says() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=CALM) as world:
        await world.fill()
        node = world.nodes["n1"]
        told: list[tuple[str, str]] = []
        set_address = node.peers.set_address
        node.peers.set_address = lambda name, address: (told.append((name, address)), set_address(name, address))[1]  # type: ignore
        await world.change(set_state=meta_pb2.SetState(node="n2", state=meta_pb2.Member.SUSPECT))
        await world.until(lambda: node.map.epoch == world.map().epoch, "the map is known")
        await world.put(b"k", b"v")
        assert told == [], "who has not moved is left alone"
