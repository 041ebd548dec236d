"""The plan of kills: the same for a seed, and never a majority down."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chaos.nemesis.schedule import DOWN_S, INTERVAL_S, PlannedKill, choose, keeps_majorities, plan
from cluster.ring.shard_map import first_map, replicas_of
from proto.gen import meta_pb2

NODES = ["n1", "n2", "n3", "n4", "n5"]


def born(replicas: int = 3, shards: int = 12) -> dict[int, frozenset[str]]:
    built: meta_pb2.ShardMap = first_map(b"0" * 16, [(n, f"{n}:1", "") for n in NODES], shards, replicas)
    return {s: frozenset(r.node for r in replicas_of(built, s)) for s in range(shards + 1)}


def test_the_same_seed_gives_the_same_plan() -> None:
    assert list(plan(7, 60)) == list(plan(7, 60)) != list(plan(8, 60))


@given(st.integers(0, 10_000))
def test_a_minute_has_room_for_twenty_kills(seed: int) -> None:
    planned = list(plan(seed, 60))
    assert len(planned) >= 20
    assert all(DOWN_S[0] <= each.down_s <= DOWN_S[1] and 0 <= each.draw < 1 for each in planned)
    gaps = [b.at_s - a.at_s for a, b in pairwise(planned)]
    assert all(INTERVAL_S[0] <= gap <= INTERVAL_S[1] for gap in gaps) and planned[-1].at_s < 60
    assert {each.target for each in planned} == {"leader", "node"}


def test_half_is_not_a_majority() -> None:
    sets = {0: frozenset("abcde"), 1: frozenset("abcd"), 2: frozenset("ab")}
    assert keeps_majorities(sets, {"c"})
    assert not keeps_majorities(sets, {"c", "d"}), "two of four are left, which is no majority"
    assert not keeps_majorities(sets, {"a"})
    assert keeps_majorities(sets, set())


PLANNED = st.builds(
    PlannedKill, st.just(0.0), st.sampled_from(["leader", "node"]), st.floats(0, 1, exclude_max=True), st.just(0.0)
)


@given(
    st.lists(PLANNED, min_size=1, max_size=6),
    st.sampled_from([1, 3, 5]),
    st.dictionaries(st.integers(0, 12), st.sampled_from(NODES)),
)
def test_whatever_is_planned_no_majority_is_ever_down(
    planned: list[PlannedKill], replicas: int, leaders: dict[int, str]
) -> None:
    sets = born(replicas)
    down: set[str] = set()
    for each in planned:
        victim = choose(each, sets, leaders, down)
        if victim is None:
            assert all(not keeps_majorities(sets, {*down, node}) for node in NODES if node not in down)
        else:
            assert victim not in down
            down.add(victim)
        for nodes in sets.values():
            assert 2 * len(nodes & down) < len(nodes)


def test_a_plan_for_a_leader_hits_one() -> None:
    sets = born()
    hit = {choose(PlannedKill(0, "leader", draw / 10, 0), sets, {1: "n2", 5: "n4"}, set()) for draw in range(10)}
    assert hit == {"n2", "n4"}
    hit = {choose(PlannedKill(0, "node", draw / 10, 0), sets, {1: "n2", 5: "n4"}, set()) for draw in range(10)}
    assert hit == set(NODES)


def test_without_a_leader_any_node_will_do() -> None:
    assert choose(PlannedKill(0, "leader", 0.0, 0), born(), {}, set()) in NODES
