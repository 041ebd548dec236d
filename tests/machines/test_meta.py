"""The meta machine: one first map, an epoch that counts changes."""

from __future__ import annotations

from typing import Any

from cluster.errors import Code
from cluster.ring.shard_map import first_map
from node.machines.applier import Outcome
from node.machines.meta import MetaMachine
from proto.gen.entry_pb2 import Request
from proto.gen.meta_pb2 import Member, MetaCommand, MetaQuery, MetaResult, ShardMap
from tests.machines.shard_world import ShardWorld, tiny

NODES = ["n1", "n2", "n3"]


def born() -> ShardMap:
    members = [(node, f"127.0.0.1:{7000 + number}", "") for number, node in enumerate(NODES)]
    return first_map(b"c" * 16, members, 4, 3)


def meta(world: ShardWorld, **command: Any) -> Outcome:
    return world.entry(Request(capability="meta", body=MetaCommand(**command).SerializeToString()))[0]


def known(world: ShardWorld) -> ShardMap:
    found: ShardMap = world.applier.query("meta", MetaQuery()).map
    return found


def test_the_first_map_is_taken_once() -> None:
    world = ShardWorld(tiny())
    assert not world.applier.query("meta", MetaQuery()).HasField("map")
    outcome = meta(world, bootstrap=born())
    assert outcome.code == Code.OK and MetaResult.FromString(outcome.body).epoch == 1
    other = born()
    other.cluster_id = b"d" * 16
    before = world.contents()
    assert meta(world, bootstrap=other).code == Code.ALREADY_EXISTS
    assert world.contents() == before
    world.restart()
    assert known(world) == born()
    assert meta(world, bootstrap=born()).code == Code.ALREADY_EXISTS


def test_a_member_that_changes_raises_the_epoch_one_that_does_not_leaves_it() -> None:
    world = ShardWorld(tiny())
    meta(world, bootstrap=born())
    machine = world.applier.machines["meta"]
    assert isinstance(machine, MetaMachine)
    held = machine.map
    moved = Member(node="n2", address="127.0.0.1:9000", zone="a")
    for expected in (2, 2):
        outcome = meta(world, set_member=moved)
        assert outcome.code == Code.OK and MetaResult.FromString(outcome.body).epoch == expected
    assert known(world).members[1] == moved and known(world).shards == born().shards
    assert held == born(), "a map once given out does not change"
    assert world.applier.feed.read(0, b"", b"", 4096) == ([], 0), "a watch of keys has no words for the map"


def test_a_member_that_is_not_known_is_refused() -> None:
    world = ShardWorld(tiny())
    assert meta(world, set_member=Member(node="n1", address="h:1")).code == Code.INVALID_ARGUMENT
    meta(world, bootstrap=born())
    outcome = meta(world, set_member=Member(node="n9", address="h:1"))
    assert outcome.code == Code.INVALID_ARGUMENT and "n9" in outcome.message
    assert known(world) == born()
