"""The driver on real nodes: a node joins, is drained, dies, comes back without its disk; whoever leads meta goes on with what was begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.ring.shard_map import changing, member, shards_on
from cluster.types import META_SHARD
from node.app import Node
from proto.gen import meta_pb2, node_pb2
from tests.node.cluster_world import FAST, ClusterWorld, Context, holds_nothing

DRIVEN = replace(
    FAST, driver_ms=50, driver_idle_ms=500, suspect_after_ms=800, heard_again_ms=300, down_after_ms=2000, moves_max=2
)
LEAVING, UP, DOWN = meta_pb2.Member.LEAVING, meta_pb2.Member.UP, meta_pb2.Member.DOWN


async def ask(world: ClusterWorld, method: str, request: Any) -> Any:
    """At any node; wherever it says that the leader is; until it is answered for good."""
    address, told = "", Code.OK
    while True:
        at = [node for node in world.nodes.values() if node.address == address] or list(world.nodes.values())
        try:
            reply = await getattr(at[0].service, method)(request, Context())
            written = at[0].meta.led_map().epoch
            await world.until(lambda: world.map().epoch >= written, "the map is known")  # noqa: B023
            return reply
        except TenfoldError as error:
            told = error.code
            if not error.retriable and told is not Code.UNKNOWN_OUTCOME:
                raise
            address = str(error.details.get("leader", ""))
        await asyncio.sleep(0.02)


def state_of(world: ClusterWorld, node: str) -> int:
    return member(world.map(), node).state


def settled(world: ClusterWorld) -> bool:
    return not any(changing(shard) for shard in world.map().shards)


async def grown(world: ClusterWorld, *names: str) -> None:
    for name in names:
        await world.join(name)
    await world.until(
        lambda: all(each.state == UP for each in world.map().members) and len(world.map().members) == len(world.nodes),
        "the new ones are up",
    )


async def reached(world: ClusterWorld, condition: Callable[[], bool], what: str) -> None:
    await world.until(lambda: condition() and settled(world), what, timeout_s=40)


async def test_a_fourth_node_joins_and_gets_its_share() -> None:
    async with asyncio.timeout(90), ClusterWorld(shards=4, limits=DRIVEN) as world:
        await world.fill()
        await grown(world, "n4")
        before = [{each.node for each in shard.replicas} for shard in world.map().shards]
        planned = await ask(world, "rebalance", node_pb2.RebalanceRequest(dry_run=True))
        assert len(planned.moves) == 3 and {move.to for move in planned.moves} == {"n4"} and planned.replicas == 15
        assert not world.map().rebalancing and not shards_on(world.map(), "n4"), "a dry run moves nothing"
        begun = await ask(world, "rebalance", node_pb2.RebalanceRequest())
        assert list(begun.moves) == list(planned.moves)
        await reached(world, lambda: not world.map().rebalancing, "it is balanced")
        after = [{each.node for each in shard.replicas} for shard in world.map().shards]
        assert sum(len(new - old) for new, old in zip(after, before, strict=True)) == 3
        assert len(shards_on(world.map(), "n4")) == 3
        status = await ask(world, "driver_status", node_pb2.DriverStatusRequest())
        assert not status.moving and not status.waiting and not status.stuck
        await world.check()


async def test_a_node_is_drained_and_removed() -> None:
    async with asyncio.timeout(90), ClusterWorld(nodes=4, shards=3, limits=DRIVEN) as world:
        await world.fill()
        with pytest.raises(TenfoldError, match="n1 is up and holds") as busy:
            await ask(world, "remove", node_pb2.RemoveRequest(node="n1"))
        assert busy.value.code is Code.MEMBER_BUSY
        await ask(world, "drain", node_pb2.DrainRequest(node="n1"))
        with pytest.raises(TenfoldError, match="without 'n2' 2 members stay") as few:
            await ask(world, "drain", node_pb2.DrainRequest(node="n2"))
        assert few.value.code is Code.INVALID_ARGUMENT
        await reached(world, lambda: not shards_on(world.map(), "n1"), "it is empty")
        await world.until(lambda: all(holds_nothing(world.nodes["n1"], shard) for shard in range(4)), "and drops all")
        assert state_of(world, "n1") == LEAVING
        await ask(world, "remove", node_pb2.RemoveRequest(node="n1"))
        await world.until(lambda: "n1" in world.map().removed, "it is removed")
        await world.crash(["n1"])
        await world.check()


async def test_what_a_dead_node_held_is_rebuilt_and_it_is_welcome_when_it_comes_back() -> None:
    async with asyncio.timeout(90), ClusterWorld(nodes=5, shards=3, limits=DRIVEN) as world:
        await world.fill()
        await world.crash(["n2"])
        await world.until(lambda: state_of(world, "n2") == DOWN, "it is down")
        await reached(world, lambda: not shards_on(world.map(), "n2"), "it is repaired")
        await reached(world, lambda: len(world.row(META_SHARD).replicas) == 3, "meta is on three of the four")
        assert all(len(shard.replicas) == 3 for shard in world.map().shards)
        await world.check()
        await world.start("n2")
        await reached(world, lambda: state_of(world, "n2") == UP and len(world.row(0).replicas) == 5, "it is back")
        await world.check()


async def test_a_dead_node_that_is_removed_is_repaired_first() -> None:
    async with asyncio.timeout(90), ClusterWorld(nodes=4, shards=2, limits=replace(DRIVEN, moves_max=1)) as world:
        await world.fill()
        await world.crash(["n3"])
        await world.until(lambda: state_of(world, "n3") == DOWN, "it is down")
        await world.until(lambda: bool(shards_on(world.map(), "n3")), "it holds something")
        refusals = []
        while True:
            try:
                await ask(world, "remove", node_pb2.RemoveRequest(node="n3"))
                break
            except TenfoldError as busy:
                assert busy.code is Code.MEMBER_BUSY
                refusals.append(busy.message)
            await asyncio.sleep(0.05)
        assert refusals[0].startswith("n3 is down: ") and "on their way to others" in refusals[0]
        assert "n3" in world.map().removed
        await world.check()


async def test_a_node_that_lost_its_disk_is_filled_again_without_a_hand() -> None:
    async with asyncio.timeout(90), ClusterWorld(shards=2, limits=DRIVEN) as world:
        await world.fill()
        await world.crash(["n3"])
        world.wipe("n3")
        node = await world.start("n3", born=True)
        assert set(node.shards.quarantined) == {0, 1, 2}
        await reached(world, lambda: len(node.shards.replicas) == 3 and not node.shards.quarantined, "it is whole")
        assert all(max(each.id for each in shard.replicas) > 3 for shard in world.map().shards), "under new ids"
        await world.check()
        await world.crash(["n3"])
        node = await world.start("n3", born=True)
        assert not node.shards.quarantined


async def test_meta_grows_to_five_and_shrinks_again() -> None:
    async with asyncio.timeout(90), ClusterWorld(shards=2, limits=DRIVEN) as world:
        await grown(world, "n4", "n5")
        await reached(world, lambda: len(world.row(META_SHARD).replicas) == 5, "meta is on five")
        leader = world.leader(META_SHARD)
        assert leader is not None
        await ask(world, "drain", node_pb2.DrainRequest(node=leader.config.node))
        await reached(world, lambda: len(world.row(META_SHARD).replicas) == 3, "meta is on three")
        assert not shards_on(world.map(), leader.config.node)


@pytest.mark.parametrize("seed", [1, 2])
async def test_whoever_leads_meta_goes_on_with_moves_that_another_began(seed: int) -> None:
    async with asyncio.timeout(90), ClusterWorld(shards=5, limits=DRIVEN, seed=seed) as world:
        await world.fill()
        await grown(world, "n4")
        await ask(world, "rebalance", node_pb2.RebalanceRequest())
        for _ in range(3):
            await world.until(lambda: not settled(world) or not world.map().rebalancing, "a move is under way")
            leader: Node | None = None
            while leader is None:
                leader = world.leader(META_SHARD)
                await asyncio.sleep(0.01)
            name = leader.config.node
            await world.crash([name], keep=bool(world.random.getrandbits(1)))
            await world.until(lambda: world.leader(META_SHARD) is not None, "another leads meta")
            await world.start(name)
        await reached(world, lambda: not world.map().rebalancing, "it is balanced")
        assert len(shards_on(world.map(), "n4")) == 3  # of fifteen
        await world.check()


async def test_only_the_meta_leader_acts_and_the_others_say_who_that_is() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=DRIVEN) as world:
        nowhere = world.addresses["n9"] = "127.0.0.1:1"
        await world.until(lambda: (found := world.leader(META_SHARD)) is not None and bool(found.meta.term), "a leader")
        leader = world.leader(META_SHARD)
        assert leader is not None
        outside = next(node for node in world.nodes.values() if node.shards.meta is None)
        holders = {node.address for node in world.nodes.values() if node.shards.meta is not None}
        for node in world.nodes.values():
            if node is leader:
                continue
            await world.until(lambda: bool(node.shards.meta is None or node.shards.meta.leader_node()), "it is known")  # noqa: B023
            with pytest.raises(TenfoldError) as refused:
                await node.service.driver_status(node_pb2.DriverStatusRequest(), Context())
            assert refused.value.code is Code.NOT_LEADER
            told = refused.value.details["leader"]
            assert told in holders if node is outside else told == leader.address
        with pytest.raises(TenfoldError) as foreign:
            await ask(world, "join", node_pb2.JoinRequest(cluster_id=b"x" * 16, member=meta_pb2.Member(node="n9")))
        assert foreign.value.code is Code.WRONG_CLUSTER
        for address, name, words in (("nowhere", "n9", "join.member.address"), ("h:1", "N9", "join.member.node")):
            with pytest.raises(TenfoldError, match=words):
                new = meta_pb2.Member(node=name, address=address)
                await ask(world, "join", node_pb2.JoinRequest(member=new))
        joined = await ask(world, "join", node_pb2.JoinRequest(member=meta_pb2.Member(node="n9", address=nowhere)))
        assert member(joined.map, "n9").state == meta_pb2.Member.JOINING and joined.epoch == joined.map.epoch
        with pytest.raises(TenfoldError, match="remove_member"):
            await ask(world, "remove", node_pb2.RemoveRequest(node="n7"))
        await ask(world, "remove", node_pb2.RemoveRequest(node="n9"))
        with pytest.raises(TenfoldError, match="a name is not given again"):
            await ask(world, "join", node_pb2.JoinRequest(member=meta_pb2.Member(node="n9", address=nowhere)))
