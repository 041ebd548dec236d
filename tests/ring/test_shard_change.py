"""Changes of a row, one at a time: a learner comes, a replica goes, what was reached is settled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Code, TenfoldError
from cluster.ring import shard_change
from cluster.ring.shard_map import LEARNER, LEAVING, VOTER, validate_shard
from proto.gen.meta_pb2 import AddReplica, Replica, RetireReplica, SettleShard, Shard

NODES = ("n1", "n2", "n3", "n4", "n5")
EPOCH = 8


def row(*holders: str) -> Shard:
    replicas = [Replica(id=number, node=node, epoch=1) for number, node in enumerate(holders or NODES[:3], 1)]
    return Shard(id=3, version=5, replicas=replicas, next_replica_id=len(replicas) + 1)


def add(shard: Shard, node: str, replaces: int = 0, version: int = 5) -> int:
    new = shard_change.add(shard, AddReplica(shard=3, version=version, node=node, replaces=replaces), EPOCH)
    validate_shard(shard, set(NODES), EPOCH)
    return new


def retire(shard: Shard, replica: int, version: int = 5, undo: bool = False) -> bool:
    done = shard_change.retire(shard, RetireReplica(shard=3, version=version, replica=replica, undo=undo))
    validate_shard(shard, set(NODES), EPOCH)
    return done


def settle(
    shard: Shard, voters: Sequence[int], learners: Sequence[int] = (), order: Sequence[int] = (), version: int = 5
) -> bool:
    command = SettleShard(shard=3, version=version, voters=voters, learners=learners, order=order)
    done = shard_change.settle(shard, command)
    validate_shard(shard, set(NODES), EPOCH)
    return done


def told(shard: Shard) -> list[tuple[int, str, int]]:
    return [(replica.id, replica.node, replica.stage) for replica in shard.replicas]


def refused(shard: Shard, change: str, *arguments: object, **named: object) -> TenfoldError:
    before = shard.SerializeToString()
    with pytest.raises(TenfoldError) as raised:
        {"add": add, "retire": retire, "settle": settle}[change](shard, *arguments, **named)  # type: ignore[operator]
    assert shard.SerializeToString() == before, "a refusal changes nothing"
    return raised.value


def test_a_move_from_end_to_end_keeps_the_place_in_the_preference_order() -> None:
    shard = row()
    assert add(shard, "n4", replaces=1) == 4
    assert told(shard) == [(1, "n1", LEAVING), (4, "n4", LEARNER), (2, "n2", VOTER), (3, "n3", VOTER)]
    assert shard.replicas[1].epoch == EPOCH and shard.next_replica_id == 5
    assert not settle(shard, [1, 2, 3], [4]), "the learner catches up: nothing to settle yet"
    assert settle(shard, [4, 2, 3])
    assert told(shard) == [(4, "n4", VOTER), (2, "n2", VOTER), (3, "n3", VOTER)]
    assert not settle(shard, [4, 2, 3])


def test_a_further_replica_stands_at_the_end() -> None:
    shard = row()
    add(shard, "n5")
    assert told(shard)[-1] == (4, "n5", LEARNER)
    assert settle(shard, [1, 2, 3, 4]) and told(shard)[-1] == (4, "n5", VOTER)


def test_a_voter_is_retired_only_if_another_stays() -> None:
    shard = row()
    assert retire(shard, 2)
    assert told(shard)[1] == (2, "n2", LEAVING)
    assert not retire(shard, 2), "it leaves already"
    assert not settle(shard, [1, 2, 3])
    assert settle(shard, [1, 3]) and [replica.id for replica in shard.replicas] == [1, 3]
    lone = row("n1")
    assert refused(lone, "retire", 1).message == "retire_replica.replica: 1 is shard 3's only voter"


def test_a_retirement_without_a_successor_can_be_undone() -> None:
    shard = row()
    retire(shard, 2)
    assert retire(shard, 2, undo=True) and told(shard)[1] == (2, "n2", VOTER)
    assert not retire(shard, 2, undo=True)
    add(shard, "n4", replaces=2)
    for replica in (2, 4):
        assert "does not leave shard 3 alone" in refused(shard, "retire", replica, undo=True).message
    rebuilt = row()
    add(rebuilt, "n2", replaces=2)
    retire(rebuilt, 4)
    for replica in (2, 4):
        assert "does not leave shard 3 alone" in refused(rebuilt, "retire", replica, undo=True).message


def test_who_gives_a_learner_up_keeps_what_it_was_to_replace() -> None:
    shard = row()
    add(shard, "n4", replaces=2)
    assert retire(shard, 4)
    assert told(shard) == [(1, "n1", VOTER), (2, "n2", VOTER), (4, "n4", LEAVING), (3, "n3", VOTER)]
    assert not settle(shard, [1, 2, 3], [4])
    assert settle(shard, [1, 2, 3]) and len(shard.replicas) == 3


def test_what_was_rebuilt_on_its_own_node_does_not_come_back() -> None:
    """The new id took its place on the disk: the old one has no memory left to vote with."""
    shard = row()
    add(shard, "n2", replaces=2)
    assert told(shard) == [(1, "n1", VOTER), (2, "n2", LEAVING), (4, "n2", LEARNER), (3, "n3", VOTER)]
    assert retire(shard, 4)
    assert told(shard)[1:3] == [(2, "n2", LEAVING), (4, "n2", LEAVING)]
    assert settle(shard, [1, 3]) and [replica.id for replica in shard.replicas] == [1, 3]


def test_the_only_replica_moves_but_is_not_rebuilt_out_of_nothing() -> None:
    shard = row("n1")
    assert "only voter: nothing to rebuild it from" in refused(shard, "add", "n1", replaces=1).message
    add(shard, "n2", replaces=1)
    assert not settle(shard, [1], [2])
    assert settle(shard, [2]) and told(shard) == [(2, "n2", VOTER)]


def test_settling_sets_the_order_of_preference() -> None:
    shard = row()
    assert settle(shard, [1, 2, 3], order=[3, 1, 2])
    assert [replica.id for replica in shard.replicas] == [3, 1, 2]
    assert not settle(shard, [1, 2, 3], order=[3, 1, 2])
    add(shard, "n4", replaces=1)
    assert settle(shard, [2, 3, 4], order=[4, 3, 2]), "the learner votes by now and has its place"
    for order in ([4, 3], [4, 3, 3], [4, 3, 9], [4, 3, 2, 1]):
        assert (
            "settle.order: must list each voter once: [2, 3, 4]" in refused(shard, "settle", [2], order=order).message
        )


@pytest.mark.parametrize(("change", "arguments"), [("add", ["n4"]), ("retire", [1]), ("settle", [[1, 2]])])
def test_a_change_made_for_another_version_is_refused(change: str, arguments: list[object]) -> None:
    for version in (4, 6):
        error = refused(row(), change, *arguments, version=version)
        assert error.code is Code.MAP_CHANGED and f"version {version}, now 5" in error.message


def test_one_change_at_a_time() -> None:
    for begin in (lambda s: add(s, "n4"), lambda s: add(s, "n4", replaces=1), lambda s: retire(s, 1)):
        shard = row()
        begin(shard)
        for change, arguments in (("add", ["n5"]), ("retire", [2])):
            error = refused(shard, change, *arguments)
            assert error.code is Code.MAP_CHANGED and "under way" in error.message


def test_what_makes_no_sense_is_refused() -> None:
    assert refused(row(), "add", "n2").code is Code.ALREADY_EXISTS
    assert refused(row(), "add", "n2", replaces=1).message == "add_replica.node: 'n2' has replica 2 of shard 3"
    assert "add_replica.replaces: shard 3 has no replica 9" in refused(row(), "add", "n4", replaces=9).message
    assert "retire_replica.replica: shard 3 has no replica 9" in refused(row(), "retire", 9).message
    assert "settle.voters: there must be one" in refused(row(), "settle", []).message
    assert "settle.voters: shard 3 has no replica 9" in refused(row(), "settle", [1, 9]).message


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data())
def test_whatever_is_asked_the_row_keeps_its_laws(data: st.DataObject) -> None:
    """Ids are never given twice, a voter or its successor is always there, and nobody loses a replica that still votes."""
    shard = row(*NODES[: data.draw(st.integers(1, 4))])
    given_out = {replica.id for replica in shard.replicas}
    for _ in range(20):
        ids = [replica.id for replica in shard.replicas]
        change = data.draw(st.sampled_from(["add", "retire", "settle"]))
        try:
            if change == "add":
                new = add(shard, data.draw(st.sampled_from(NODES)), data.draw(st.sampled_from([0, *ids])))
                assert new not in given_out
                given_out.add(new)
            elif change == "retire":
                retire(shard, data.draw(st.sampled_from(ids)), undo=data.draw(st.booleans()))
            else:
                voting = data.draw(st.lists(st.sampled_from(ids), unique=True))
                settle(shard, voting)
                assert {replica.id for replica in shard.replicas} >= set(voting)
        except TenfoldError:
            pass
        stages = [replica.stage for replica in shard.replicas]
        assert stages.count(LEARNER) <= 1 and stages.count(LEAVING) <= 2
        assert VOTER in stages or stages.count(LEARNER) == stages.count(LEAVING) == 1
