"""Nodes arrive: one that joins is let in, one that lost its disk trusts nothing until it is told, and is rebuilt."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from node.app import Node
from node.arrival import NOTHING_LOST, PATH, Arrival, Loss
from node.storage.identity import Identity, Sealed
from node.storage.memory import ForgettingDisk
from proto.gen import meta_pb2, node_pb2, peer_pb2
from tests.node.cluster_world import CLUSTER_ID, FAST, ClusterWorld, holds_nothing

IDENTITY = Identity(CLUSTER_ID, "n1")


def placed(epoch: int) -> meta_pb2.Replica:
    return meta_pb2.Replica(id=9, node="n1", epoch=epoch)


async def test_what_was_lost_is_remembered() -> None:
    medium = ForgettingDisk()

    def opened() -> Loss:
        return Loss(Sealed(medium.attach(), PATH), IDENTITY)

    loss = opened()
    assert loss.epoch == NOTHING_LOST and loss.is_new(placed(0)), "an intact log knows all that was here"
    await loss.note()
    assert opened().epoch is None and not opened().is_new(placed(10**6)), "not known yet, so nothing is trusted"
    await opened().know(7)
    assert opened().epoch == 7
    assert not opened().is_new(placed(7)) and opened().is_new(placed(8))


def test_a_suspicion_bars_what_the_map_on_disk_may_have_placed_here() -> None:
    loss = Loss(Sealed(ForgettingDisk().attach(), PATH), IDENTITY)
    loss.suspect(5)
    assert not loss.is_new(placed(5)) and loss.is_new(placed(6))
    loss.suspect(3)
    assert not loss.is_new(placed(5))


async def test_whoever_forgot_what_was_lost_asks_again() -> None:
    medium = ForgettingDisk()
    disk = medium.attach()
    await Loss(Sealed(disk, PATH), IDENTITY).know(7)
    for path in [path for path in medium.names if path.startswith(PATH)]:
        medium.flip(path, 8 * (len(medium.names[path].data) - 1))
    assert Loss(Sealed(disk, PATH), IDENTITY).epoch is None


async def test_a_node_that_joins_is_let_in_and_takes_part() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        node = await world.join("n4")
        await world.until(lambda: "n4" in node.map.addresses(), "it is let in")
        await world.until(lambda: len(node.peers.up()) == 3, "it reaches all")
        for other in world.nodes.values():
            await world.until(lambda other=other: other is node or "n4" in other.peers.up(), "all reach it")
        added = await world.add(1, "n4", world.row(1).replicas[-1].id)
        await world.settle(1)
        assert node.shards.replica_of(1) == added
        await world.check()
        await world.crash([*world.names, "n4"])
        node = await world.start("n4")
        assert node.map.epoch and node.shards.replica_of(1) == added, "it needs nobody to know what it has"
        for name in world.names:
            await world.start(name)
        await world.check()


async def test_a_node_that_joins_with_an_empty_disk_under_a_members_name_is_not_taken_for_new() -> None:
    """Say, its whole directory was deleted, and it was added once more: the replicas placed there have voted."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        await world.join("n4")
        await world.until(lambda: all(len(node.peers.up()) == 3 for node in world.nodes.values()), "all reach all")
        added = await world.add(1, "n4", world.row(1).replicas[-1].id)
        await world.settle(1)
        for _ in range(3):
            await world.crash(["n4"])
            await world.start("n4")
            await world.until(
                lambda: sorted(world.nodes["n4"].peers.up()) == world.names, "the peers know how often it started"
            )
        await world.crash(["n4"])
        world.wipe("n4")
        node = await world.start("n4")
        await world.until(lambda: node.shards.replica_of(1) == added, "it is told what is placed there")
        assert node.shards.quarantined[1].reason == "its log is gone" and 1 not in node.shards.replicas
        await world.until(lambda: sorted(node.peers.up()) == world.names, "it is let in by all")
        await world.check()


async def test_nothing_is_placed_on_a_node_that_is_not_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is lost: the others know it as a member, and it learns the map from them."""
    take, answered = Arrival._take, asyncio.Event()

    async def lost_answer(arrival: Arrival, reply: node_pb2.JoinReply) -> None:
        if not answered.is_set():
            raise ChannelBroken("the answer was lost")
        await take(arrival, reply)

    monkeypatch.setattr(Arrival, "_take", lost_answer)
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        node = await world.join("n4")
        await world.until(lambda: all(len(each.peers.up()) == 3 for each in world.nodes.values()), "all reach all")
        leader = world.leader(0)
        assert leader is not None
        beats = watched_beats(leader, "n4")
        await world.until(lambda: len(beats) > 10, "it is heard long enough to be up")
        assert all(beat.lost for beat in beats) and state(world, "n4") == meta_pb2.Member.JOINING
        assert node.loss.epoch is None and node.map.epoch
        answered.set()
        await world.until(lambda: state(world, "n4") == meta_pb2.Member.UP, "it is told")
        added = await world.add(1, "n4", world.row(1).replicas[-1].id)
        await world.settle(1)
        assert node.shards.replicas[1].core.replica == added


def watched_beats(node: Node, peer: str) -> list[peer_pb2.NodeHeartbeat]:
    """What `peer` tells it from now on."""
    told: list[peer_pb2.NodeHeartbeat] = []
    hear = node.events.on_heartbeat

    def heard(name: str, beat: peer_pb2.NodeHeartbeat) -> None:
        if name == peer:
            told.append(beat)
        hear(name, beat)

    node.events.on_heartbeat = heard  # type: ignore[method-assign]
    return told


def state(world: ClusterWorld, name: str) -> int:
    return next(member.state for member in world.map().members if member.node == name)


async def test_a_node_that_joins_too_early_waits() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.put(b"k", b"1")
        await world.crash(list(world.names))
        node = await world.join("n4")
        assert node.map.epoch == 0 and node.status().epoch == 0
        reply = await world.call(world.get_request(b"k"), node=node)
        assert reply.code == Code.MAP_BEHIND, "it knows of no shard yet"
        await world.crash(["n4"])
        await world.start("n4")
        for name in world.names:
            await world.start(name)
        await world.until(lambda: "n4" in world.nodes["n4"].map.addresses(), "it is let in")
        assert (await world.get(b"k")).value == b"1"


async def test_a_name_that_was_removed_is_not_let_in_again() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.put(b"k", b"1")
        node = await world.join("n5")
        await world.until(lambda: "n5" in node.map.addresses(), "it is let in")
        await world.change(remove_member="n5")
        await world.crash(["n5"])
        node = await world.join("n5")  # with an empty disk
        failure = await node.stopped
        assert isinstance(failure, TenfoldError) and failure.code is Code.INVALID_ARGUMENT
        assert "is removed" in failure.message


async def lost(world: ClusterWorld, victim: str) -> Node:
    """The node again, with an empty disk in the place of its own."""
    await world.crash([victim])
    world.wipe(victim)
    return await world.start(victim, born=True)


async def test_a_lost_disk_is_told_and_all_that_was_on_it_is_rebuilt() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        leader = world.leader(1)
        assert leader is not None
        victim = next(name for name in world.names if name != leader.config.node)
        before = {shard: world.nodes[victim].shards.replica_of(shard) for shard in (0, 1)}
        epoch = world.map().epoch
        node = await lost(world, victim)
        assert {each.reason for each in node.shards.quarantined.values()} == {"its log is gone"}
        await world.until(lambda: node.loss.epoch is not None, "it is told up to when its replicas are lost")
        assert node.loss.epoch is not None and node.loss.epoch > epoch
        for shard in (0, 1):
            bad = node.shards.replica_of(shard)
            if bad == before[shard]:
                await world.rebuild(shard, victim, bad)
            await world.settle(shard)
        await world.until(lambda: not node.shards.quarantined and set(node.shards.replicas) == {0, 1}, "rebuilt")
        assert all(node.shards.replica_of(shard) > before[shard] for shard in (0, 1)), "under new ids"
        await world.check()
        await world.crash([victim])
        node = await world.start(victim, born=True)
        assert node.loss.epoch is not None and not node.shards.quarantined, "it has lived, and its log is intact"
        await world.check()


async def test_after_a_loss_an_old_copy_of_the_disk_stays_out() -> None:
    """It knows of the loss as the disk does that it is a copy of, but not of the votes given since."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        others = [name for name in world.names if name != "n3"]
        for _ in range(2):
            node = await lost(world, "n3")
            await world.until(lambda node=node: node.loss.epoch is not None, "it is told")
            await world.until(lambda node=node: sorted(node.peers.up()) == others, "let in by all")
        await world.crash(["n3"])
        copy = deepcopy((world.disks["n3"], world.states["n3"]))
        for _ in range(2):
            node = await world.start("n3", born=True)
            await world.until(lambda node=node: sorted(node.peers.up()) == others, "the disk itself comes back")
            await world.crash(["n3"])
        world.disks["n3"], world.states["n3"] = copy
        refused = {name: refusals(world.nodes[name]) for name in others}
        node = await world.start("n3", born=True)
        for name in others:
            await world.until(lambda name=name: len(refused[name]) > 3, "it tries again and again")
        assert node.peers.up() == [] and set(refused["n1"]) == {f"incarnation: {node.incarnation} of n3 is over"}
        await world.check()


def refusals(node: Node) -> list[str]:
    """What it answers to those it refuses from now on."""
    told: list[str] = []
    refuse = node.peers._refuse

    def heard(hello: Any, code: Code, why: str, **details: int) -> None:
        told.append(why)
        refuse(hello, code, why, **details)

    node.peers._refuse = heard  # type: ignore[method-assign]
    return told


async def test_until_it_is_told_a_node_that_lost_its_disk_begins_nothing() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        target = world.spare()
        leaver = world.row(1).replicas[-1]
        await world.crash([target])
        world.wipe(target)
        await world.add(1, target, leaver.id)  # it does not know of this, nor of what it lost
        await world.crash([name for name in world.names if name != target], keep=True)
        node = await world.start(target, born=True)
        await node.map.update(world.map())
        await world.until(lambda: node.upkeep._followed is node.map.current, "the map is followed")
        assert holds_nothing(node) and node.loss.epoch is None
        await world.crash([target])
        node = await world.start(target, born=True)
        assert holds_nothing(node) and node.loss.epoch is None, "also after a restart"
        for name in world.names:
            if name != target:
                await world.start(name)
        await world.until(lambda: node.loss.epoch is not None, "it is told")
        await world.until(lambda: 1 in node.shards.quarantined, "what was placed before that is not trusted")
        await world.check()


async def move(world: ClusterWorld, shard: int, source: str, target: str) -> None:
    held = next((each for each in world.row(shard).replicas if each.node == source), None)
    if held is not None:
        await world.add(shard, target, held.id)
        await world.settle(shard)


async def test_a_node_whose_seeds_are_all_gone_is_found_by_the_others() -> None:
    """It lost its disk, and everybody it was born with is no member any more."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, replicas=1, limits=FAST) as world:
        await world.put(b"k", b"1")
        for name in ("n4", "n5"):
            node = await world.join(name)
            await world.until(lambda node=node: len(node.peers.up()) >= 3, "it is let in")
        for source, target in (("n2", "n4"), ("n3", "n5")):
            await move(world, 0, source, target)
            await move(world, 1, source, target)
            await world.crash([source])
            await world.change(remove_member=source)
        node = await lost(world, "n1")
        assert set(node.map.addresses()) == {"n1", "n2", "n3"}, "it knows of nobody who is there"
        await world.until(lambda: node.loss.epoch is not None, "it is told")
        await world.until(lambda: sorted(node.peers.up()) == ["n4", "n5"], "it reaches the others")
