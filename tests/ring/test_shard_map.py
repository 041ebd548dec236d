"""The first map of a cluster, and the laws of every map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.limits import DEFAULT
from cluster.ring import shard_map as maps
from cluster.ring.ring import Ring
from cluster.ring.shard_map import LEARNER, LEAVING, VOTER
from proto.gen import meta_pb2

CLUSTER = bytes(range(16))


def members(count: int, zones: int = 0) -> list[tuple[str, str, str]]:
    return [(f"n{i}", f"127.0.0.1:{7000 + i}", f"z{i % zones}" if zones else "") for i in range(1, count + 1)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(0, 4))
def test_the_first_map_keeps_the_laws(count: int, shards: int, replicas: int, zones: int) -> None:
    replicas = min(replicas, count)
    first = maps.first_map(CLUSTER, members(count, zones), shards, replicas)
    maps.validate(first)
    assert all(replica.epoch == 1 and replica.stage == VOTER for shard in first.shards for replica in shard.replicas)
    assert (first.epoch, first.replication_factor, first.cluster_id) == (1, replicas, CLUSTER)
    assert maps.data_shards(first) == shards
    assert [(m.node, m.address, m.zone) for m in first.members] == members(count, zones)
    ring = Ring({node: zone for node, _, zone in members(count, zones)}, shards)
    for number in range(1, shards + 1):
        shard = maps.shard(first, number)
        assert shard.version == 1
        assert [replica.id for replica in shard.replicas] == list(range(1, replicas + 1))
        assert shard.next_replica_id == replicas + 1
        assert [replica.node for replica in maps.replicas_of(first, number)] == ring.preference_list(number, replicas)
    for node, _, _ in members(count):
        holds = [n for n in range(shards + 1) if maps.replica_on(first, n, node) is not None]
        assert maps.shards_on(first, node) == holds


@pytest.mark.parametrize(("count", "holders"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_meta_is_on_the_first_three_members_and_five_from_five_on(count: int, holders: int) -> None:
    first = maps.first_map(CLUSTER, members(count), 4, 1)
    assert [replica.node for replica in maps.replicas_of(first, 0)] == [f"n{i}" for i in range(1, holders + 1)]
    assert first.shards[0].next_replica_id == holders + 1


def test_a_member_is_found_by_name() -> None:
    first = maps.first_map(CLUSTER, members(3), 4, 3)
    assert maps.member(first, "n2").address == "127.0.0.1:7002"
    with pytest.raises(ValueError, match="'n9' is not a member; the members are n1, n2, n3"):
        maps.member(first, "n9")
    assert maps.shards_on(first, "n9") == []
    for number in (-1, 5):
        with pytest.raises(ValueError, match=r"not in 0\.\.4"):
            maps.shard(first, number)


@pytest.mark.parametrize(
    ("count", "shards", "replicas", "problem"),
    [
        (3, 12, 4, "replicas: 4 is not in 1..3"),
        (3, 12, 0, "replicas: 0"),
        (3, 0, 3, "shards: 0"),
        (3, 1025, 3, "shards: 1025 is not in 1..1024"),
        (0, 12, 1, "nodes: 0"),
        (65, 12, 1, "nodes: 65 is not in 1..64"),
    ],
)
def test_a_first_map_that_makes_no_sense_is_refused(count: int, shards: int, replicas: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        maps.first_map(CLUSTER, members(count), shards, replicas)


def test_members_with_one_name_or_a_name_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        maps.first_map(CLUSTER, [members(1)[0], ("n1", "127.0.0.1:9", "")], 1, 1)
    with pytest.raises(ValueError, match="must match"):
        maps.first_map(CLUSTER, [("../n1", "127.0.0.1:9", "")], 1, 1)


def _broken(change: Callable[[meta_pb2.ShardMap], object]) -> meta_pb2.ShardMap:
    first = maps.first_map(CLUSTER, members(4), 4, 3)
    change(first)
    return first


def _stages(shard: meta_pb2.Shard, *stages: int) -> None:
    for replica, stage in zip(shard.replicas, stages, strict=True):
        replica.stage = stage  # type: ignore[assignment]


def _learner(shard: meta_pb2.Shard, node: str) -> None:
    shard.replicas.add(id=shard.next_replica_id, node=node, stage=LEARNER)
    shard.next_replica_id += 1


def _set(message: object, field: str, value: object) -> None:
    setattr(message, field, value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: _set(m, "cluster_id", b"short"), "cluster_id"),
        (lambda m: _set(m, "epoch", 0), "epoch"),
        (lambda m: _set(m.members[1], "node", "n1"), "same name"),
        (lambda m: _set(m.members[1], "address", ""), "'n2' has no address"),
        (lambda m: _set(m.members[1], "state", 9), "'n2' is in state 9"),
        (lambda m: m.removed.append("n2"), "removed: 'n2' is a member"),
        (lambda m: m.removed.extend(["n8", "n8"]), "removed: a name is listed twice"),
        (lambda m: m.removed.append("../n8"), "must match"),
        (lambda m: m.shards.pop(2), "number 2 has the id 3"),
        (lambda m: _set(m.shards[2], "version", 0), "shard 2: its version"),
        (lambda m: m.shards[2].ClearField("replicas"), "shard 2: has no replica"),
        (lambda m: _set(m.shards[2].replicas[0], "node", "n9"), "shard 2: 'n9' is not a member"),
        (lambda m: _set(m.shards[2].replicas[0], "node", m.shards[2].replicas[1].node), "two replicas are on one node"),
        (lambda m: _learner(m.shards[2], m.shards[2].replicas[0].node), "two replicas are on one node"),
        (lambda m: _stages(m.shards[2], LEARNER, LEARNER, LEARNER), "shard 2: has no voter"),
        (lambda m: _stages(m.shards[2], LEAVING, LEAVING, LEAVING), "shard 2: has no voter"),
        (lambda m: _stages(m.shards[2], 7, VOTER, VOTER), "in stage 7, which is none"),
        (lambda m: _set(m.shards[2].replicas[0], "epoch", 2), "of epoch 2, above 1"),
        (lambda m: _set(m.shards[2].replicas[0], "id", 2), "replica ids"),
        (lambda m: _set(m.shards[2].replicas[0], "id", 0), "replica ids"),
        (lambda m: _set(m.shards[2].replicas[0], "id", 4), "below 4"),
        (lambda m: m.ClearField("shards"), "meta and at least one"),
    ],
)
def test_a_map_that_breaks_a_law_is_refused_with_its_name(
    change: Callable[[meta_pb2.ShardMap], object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        maps.validate(_broken(change))


def test_two_members_may_share_an_address_while_they_swap_but_not_at_birth() -> None:
    swapping = _broken(lambda m: _set(m.members[1], "address", m.members[0].address))
    maps.validate(swapping)
    with pytest.raises(ValueError, match="address of its own"):
        maps.validate_first(swapping)


def test_no_more_removed_names_are_kept_than_the_bound() -> None:
    last = _broken(lambda m: m.removed.extend(f"gone-{i}" for i in range(DEFAULT.removed_names_max)))
    maps.validate(last)
    last.removed.append("one-more")
    with pytest.raises(ValueError, match=f"at most {DEFAULT.removed_names_max}"):
        maps.validate(last)


def test_what_a_changing_row_says() -> None:
    first = maps.first_map(CLUSTER, members(4), 4, 3)
    row = first.shards[0]
    assert not maps.changing(row) and maps.voters(row) == maps.staying(row) == list(row.replicas)
    row.replicas[1].stage = LEAVING
    _learner(row, "n2")  # in the place of the one that leaves, on its node
    maps.validate(first)
    assert maps.changing(row)
    assert [replica.id for replica in maps.voters(row)] == [1, 3]
    assert [replica.id for replica in maps.staying(row)] == [1, 3, 4]
    assert maps.replica_on(first, 0, "n2") == 4, "the newest"
    assert maps.replica(row, 2) == row.replicas[1] and maps.replica(row, 9) is None


def test_the_last_voter_may_leave_while_a_learner_takes_its_place() -> None:
    first = maps.first_map(CLUSTER, members(2), 2, 1)
    _stages(first.shards[1], LEAVING)
    _learner(first.shards[1], next(m.node for m in first.members if m.node != first.shards[1].replicas[0].node))
    maps.validate(first)
