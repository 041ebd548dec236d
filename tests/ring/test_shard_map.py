"""The first map of a cluster, and the laws of every map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.ring import shard_map as maps
from cluster.ring.ring import Ring
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


def _set(message: object, field: str, value: object) -> None:
    setattr(message, field, value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: _set(m, "cluster_id", b"short"), "cluster_id"),
        (lambda m: _set(m, "epoch", 0), "epoch"),
        (lambda m: _set(m.members[1], "node", "n1"), "same name"),
        (lambda m: _set(m.members[1], "address", m.members[0].address), "address of its own"),
        (lambda m: _set(m.members[1], "address", ""), "address of its own"),
        (lambda m: m.shards.pop(2), "number 2 has the id 3"),
        (lambda m: _set(m.shards[2], "version", 0), "shard 2: its version"),
        (lambda m: m.shards[2].ClearField("replicas"), "shard 2: has no replica"),
        (lambda m: _set(m.shards[2].replicas[0], "node", "n9"), "shard 2: 'n9' is not a member"),
        (lambda m: _set(m.shards[2].replicas[0], "node", m.shards[2].replicas[1].node), "two replicas are on one node"),
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
