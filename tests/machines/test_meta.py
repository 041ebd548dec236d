"""The meta machine: one first map, an epoch that counts changes, members that come and go, replicas that move."""

from __future__ import annotations

from typing import Any

from cluster.errors import Code
from cluster.ring import shard_map
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
    for expected in (2, 2, 2):
        outcome = meta(world, set_member=moved)
        moved.state = Member.DOWN  # which is not for this command to say
        assert outcome.code == Code.OK and MetaResult.FromString(outcome.body).epoch == expected
    moved.state = Member.UP
    assert known(world).members[1] == moved and known(world).shards == born().shards
    assert held == born(), "a map once given out does not change"
    assert world.applier.feed.read(0, b"", b"", 4096) == ([], 0), "a watch of keys has no words for the map"


def world_with_a_map(**limits: int) -> ShardWorld:
    world = ShardWorld(tiny(nodes_max=5, **limits))
    meta(world, bootstrap=born())
    return world


def done(world: ShardWorld, **command: Any) -> MetaResult:
    """A command that is carried out; the epoch is raised by one if and only if the map changed."""
    before = known(world)
    outcome = meta(world, **command)
    assert outcome.code == Code.OK, outcome
    result, after = MetaResult.FromString(outcome.body), known(world)
    assert result.epoch == after.epoch == before.epoch + (after != before)
    changed = [row.id for row, old in zip(after.shards, before.shards, strict=True) if row != old]
    raised = [row.id for row, old in zip(after.shards, before.shards, strict=True) if row.version == old.version + 1]
    assert changed == raised and len(changed) <= 1, "the version of the shard that changed, and no other"
    return result


def refused(world: ShardWorld, **command: Any) -> Outcome:
    before = world.contents()
    outcome = meta(world, **command)
    assert outcome.code != Code.OK
    after = world.contents()
    assert after == before, "a refusal changes nothing"
    return outcome


def member(world: ShardWorld, node: str) -> Member:
    return shard_map.member(known(world), node)


def joining(node: str, port: int = 9000, zone: str = "") -> Member:
    return Member(node=node, address=f"127.0.0.1:{port}", zone=zone)


def test_before_the_first_map_there_is_nothing_to_change() -> None:
    world = ShardWorld(tiny())
    for name in ("set_member", "join", "set_state", "add_replica", "retire_replica", "settle", "set_rebalancing"):
        empty = getattr(MetaCommand(), name)
        outcome = refused(world, **{name: empty})
        assert outcome.code == Code.INVALID_ARGUMENT and outcome.message == f"{name}: there is no map yet"


def test_a_new_member_joins_and_is_joining_until_it_is_heard() -> None:
    world = world_with_a_map()
    assert done(world, join={"member": Member(node="n4", address="h:1", zone="z", state=Member.UP)}).epoch == 2
    assert member(world, "n4") == Member(node="n4", address="h:1", zone="z", state=Member.JOINING)
    assert done(world, set_state={"node": "n4", "state": Member.UP}).epoch == 3
    assert known(world).members[3].node == "n4", "in the order of joining"


def test_a_known_member_that_joins_has_moved_and_keeps_its_state() -> None:
    world = world_with_a_map()
    done(world, set_state={"node": "n2", "state": Member.SUSPECT})
    assert done(world, join={"member": joining("n2", 9001)}).epoch == 3
    assert member(world, "n2").address == "127.0.0.1:9001" and member(world, "n2").state == Member.SUSPECT
    assert done(world, join={"member": joining("n2", 9001)}).epoch == 3, "nothing new"


def test_a_member_that_lost_its_disk_gets_an_epoch_of_its_own() -> None:
    world = world_with_a_map()
    present = member(world, "n2")
    before = known(world)
    for expected in (2, 3):
        outcome = meta(world, join={"member": present, "lost": True})
        assert MetaResult.FromString(outcome.body).epoch == expected
    before.epoch = 3
    assert known(world) == before, "nothing else has changed"
    new = done(world, add_replica={"shard": 1, "version": 1, "node": "n2", "replaces": on(world, 1, "n2")})
    assert max(r.epoch for r in known(world).shards[1].replicas) == new.epoch > 3, "what is placed now is not lost"


def on(world: ShardWorld, shard: int, node: str) -> int:
    found = shard_map.replica_on(known(world), shard, node)
    assert found is not None
    return found


def test_no_more_members_than_the_bound() -> None:
    world = world_with_a_map()
    for name in ("n4", "n5"):
        done(world, join={"member": joining(name)})
    assert refused(world, join={"member": joining("n6")}).message == "join.node: there are 5 members, at most 5"


def test_states_change_as_the_table_says() -> None:
    world = world_with_a_map()
    for state in (Member.UP, Member.SUSPECT, Member.SUSPECT, Member.DOWN, Member.UP, Member.SUSPECT, Member.UP):
        done(world, set_state={"node": "n2", "state": state})
        assert member(world, "n2").state == state
    outcome = refused(world, set_state={"node": "n2", "state": Member.DOWN})
    assert outcome.code == Code.INVALID_ARGUMENT
    assert outcome.message == "set_state.state: 'n2' is up and cannot become down"
    assert "'n9' is not a member" in refused(world, set_state={"node": "n9", "state": Member.UP}).message


def test_no_more_members_leave_than_the_replicas_allow() -> None:
    world = world_with_a_map()
    leave = {"node": "n1", "state": Member.LEAVING}
    words = "without 'n1' 2 members stay, must be at least 3 for as many replicas"
    assert words in refused(world, set_state=leave).message
    done(world, join={"member": joining("n4")})
    done(world, set_state=leave)
    assert done(world, set_state=leave).epoch == known(world).epoch, "it leaves already"
    assert "without 'n2' 2 members" in refused(world, set_state={"node": "n2", "state": Member.LEAVING}).message
    assert "leaving and cannot become up" in refused(world, set_state={"node": "n1", "state": Member.UP}).message


def move(world: ShardWorld, shard: int, node: str, to: str) -> None:
    """Replaces, as a driver does, one replica by another."""
    old = on(world, shard, node)
    version = known(world).shards[shard].version
    new = done(world, add_replica={"shard": shard, "version": version, "node": to, "replaces": old}).replica
    row = known(world).shards[shard]
    voters = [replica.id for replica in row.replicas if replica.id != old]
    assert new in voters
    done(world, settle={"shard": shard, "version": row.version, "voters": voters})


def test_a_member_is_removed_when_it_holds_nothing_and_its_name_never_comes_back() -> None:
    world = world_with_a_map()
    done(world, join={"member": joining("n4")})
    done(world, set_state={"node": "n1", "state": Member.LEAVING})
    outcome = refused(world, remove_member="n1")
    assert outcome.code == Code.MEMBER_BUSY
    assert outcome.message == "remove_member: 'n1' holds 5 replicas, must be 0; drain it"
    for shard in range(5):
        move(world, shard, "n1", "n4")
    done(world, remove_member="n1")
    assert [each.node for each in known(world).members] == ["n2", "n3", "n4"] and known(world).removed == ["n1"]
    assert done(world, remove_member="n1").epoch == known(world).epoch, "asked again, it is done"
    assert "'n1' was a member and is removed" in refused(world, join={"member": joining("n1")}).message
    assert "'n7' is not a member" in refused(world, remove_member="n7").message
    world.restart()
    assert known(world).removed == ["n1"]


def test_no_member_is_removed_that_the_replicas_need() -> None:
    world = world_with_a_map()
    for name in ("n4", "n5"):
        done(world, join={"member": joining(name)})
    done(world, set_state={"node": "n1", "state": Member.LEAVING})
    done(world, remove_member="n4")
    assert "without 'n5' 2 members stay" in refused(world, remove_member="n5").message


def test_the_oldest_removed_name_is_forgotten() -> None:
    world = world_with_a_map(removed_names_max=2)
    for name in ("a", "b", "c"):
        done(world, join={"member": joining(name)})
        done(world, remove_member=name)
    assert known(world).removed == ["b", "c"]


def test_replicas_come_only_to_members_that_stay() -> None:
    world = world_with_a_map()
    command = {"shard": 1, "version": 1, "node": "n4"}
    assert "add_replica.node: 'n4' is not a member" in refused(world, add_replica=command).message
    done(world, join={"member": joining("n4")})
    done(world, join={"member": joining("n5")})
    done(world, set_state={"node": "n4", "state": Member.LEAVING})
    assert "'n4' is leaving and gets no new replicas" in refused(world, add_replica=command).message
    result = done(world, add_replica={**command, "node": "n5"})
    assert result.replica == 4
    row = known(world).shards[1]
    assert row.version == 2 and row.replicas[3].node == "n5" and row.replicas[3].epoch == result.epoch
    assert refused(world, add_replica={**command, "node": "n5"}).code == Code.MAP_CHANGED
    done(world, retire_replica={"shard": 1, "version": 2, "replica": 4})
    assert done(world, retire_replica={"shard": 1, "version": 3, "replica": 4}).epoch == known(world).epoch
    done(world, settle={"shard": 1, "version": 3, "voters": [1, 2, 3]})
    assert [replica.id for replica in known(world).shards[1].replicas] == [1, 2, 3]
    for name in ("add_replica", "retire_replica", "settle"):
        outcome = refused(world, **{name: {"shard": 5, "version": 1}})
        assert outcome.code == Code.INVALID_ARGUMENT and outcome.message == f"{name}.shard: 5, must be 0 to 4"


def test_rebalancing_is_a_word_in_the_map() -> None:
    world = world_with_a_map()
    assert done(world, set_rebalancing={"on": True}).epoch == done(world, set_rebalancing={"on": True}).epoch == 2
    assert known(world).rebalancing
    assert done(world, set_rebalancing={"on": False}).epoch == 3


def test_a_member_that_is_not_known_is_refused() -> None:
    world = ShardWorld(tiny())
    assert meta(world, set_member=Member(node="n1", address="h:1")).code == Code.INVALID_ARGUMENT
    meta(world, bootstrap=born())
    outcome = meta(world, set_member=Member(node="n9", address="h:1"))
    assert outcome.code == Code.INVALID_ARGUMENT and "n9" in outcome.message
    assert known(world) == born()
