"""The ring: how a key is placed may never change, and where shards lie must be balanced, spread and stable."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from cluster.limits import DEFAULT
from cluster.ring.ring import CIRCLE, Ring, arc, load_bound, routing_key, shard_of

deterministic = settings(derandomize=True, deadline=None, max_examples=150)


PINNED = [
    "n4 n5 n3",
    "n2 n5 n4",
    "n5 n2 n1",
    "n2 n4 n5",
    "n1 n5 n4",
    "n3 n4 n2",
    "n5 n4 n3",
    "n1 n2 n4",
    "n3 n1 n5",
    "n4 n3 n5",
    "n1 n2 n3",
    "n2 n1 n3",
]


def nodes(count: int, zones: int = 0) -> dict[str, str]:
    return {f"n{i}": f"z{i % zones}" if zones else "" for i in range(1, count + 1)}


def loads(lists: list[list[str]]) -> Counter[str]:
    return Counter(node for chosen in lists for node in chosen)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (b"plain", b"plain"),
        (b"{user}:name", b"user"),
        (b"a{user}b{other}", b"user"),
        (b"a{{user}}", b"{user"),
        (b"{}whole", b"{}whole"),
        (b"{}{late}", b"{}{late}"),
        (b"{open", b"{open"),
        (b"}{x}", b"x"),
        (b"close}", b"close}"),
        (b"", b""),
        (b"\xff{\x00}", b"\x00"),
    ],
)
def test_routing_key_is_what_the_first_braces_hold(key: bytes, part: bytes) -> None:
    assert routing_key(key) == part


def test_the_hash_is_the_one_that_data_on_disk_was_placed_by() -> None:
    assert xxh3_64_intdigest(b"") == 0x2D06800538D394C2  # the published vector of XXH3
    assert shard_of(b"", 12) == 1 + 12 * 0x2D06800538D394C2 // CIRCLE
    assert [shard_of(b"key-%d" % i, 12) for i in range(12)] == [7, 3, 5, 9, 9, 11, 12, 11, 3, 5, 1, 6]
    assert shard_of(b"{key-0}/anything", 12) == shard_of(b"key-0", 12)


@deterministic
@given(st.binary(max_size=40), st.integers(1, DEFAULT.shards_max))
def test_a_key_lies_in_the_arc_of_its_shard(key: bytes, shards: int) -> None:
    low, high = arc(shard_of(key, shards), shards)
    assert low <= xxh3_64_intdigest(routing_key(key)) < high


@deterministic
@given(st.integers(1, DEFAULT.shards_max))
def test_the_arcs_cut_the_circle_into_equal_parts_without_a_gap(shards: int) -> None:
    arcs = [arc(shard, shards) for shard in range(1, shards + 1)]
    assert arcs[0][0] == 0
    assert arcs[-1][1] == CIRCLE
    assert all(before[1] == after[0] for before, after in pairwise(arcs))
    assert {high - low for low, high in arcs} <= {CIRCLE // shards, CIRCLE // shards + 1}


@pytest.mark.parametrize("shard", [0, -1, 13])
def test_there_is_no_arc_outside_the_data_shards(shard: int) -> None:
    with pytest.raises(ValueError, match="shard"):
        arc(shard, 12)


@deterministic
@given(st.integers(1, 24), st.integers(1, 120), st.integers(1, 7), st.sampled_from([1, 4, 64]))
def test_every_list_has_distinct_nodes_and_no_node_is_above_the_bound(
    count: int, shards: int, replicas: int, virtual_nodes: int
) -> None:
    replicas = min(replicas, count)
    lists = Ring(nodes(count), shards, virtual_nodes=virtual_nodes).preference_lists(replicas)
    assert len(lists) == shards
    assert all(len(set(chosen)) == len(chosen) == replicas for chosen in lists)
    assert max(loads(lists).values()) <= load_bound(count, shards, replicas)


def test_the_bound_is_kept_where_a_plain_walk_would_break_it() -> None:
    """One virtual node each: the arcs between them differ wildly."""
    ring = Ring(nodes(9), 300, virtual_nodes=1)
    plain = Counter(next(iter(ring.walk(arc(shard, 300)[0]))) for shard in range(1, 301))
    assert max(plain.values()) > 2 * load_bound(9, 300, 1)
    assert max(loads(ring.preference_lists(1)).values()) <= load_bound(9, 300, 1)


@pytest.mark.parametrize(
    ("count", "shards", "replicas", "bound"), [(5, 12, 3, 8), (10, 100, 1, 11), (3, 12, 3, 14), (1, 1, 1, 2)]
)
def test_the_bound_is_eleven_tenths_of_the_average_rounded_up(
    count: int, shards: int, replicas: int, bound: int
) -> None:
    assert load_bound(count, shards, replicas) == bound


@deterministic
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 6), st.integers(1, 100))
def test_replicas_are_spread_over_zones_as_evenly_as_zones_allow(
    zones: int, each: int, replicas: int, shards: int
) -> None:
    zone = nodes(zones * each, zones)
    replicas = min(replicas, len(zone))
    lists = Ring(zone, shards).preference_lists(replicas)
    for chosen in lists:
        per_zone = Counter(zone[node] for node in chosen)
        assert max(per_zone.values()) == -(-replicas // zones)
        assert len(per_zone) == min(zones, replicas)
    assert max(loads(lists).values()) <= load_bound(len(zone), shards, replicas)


def test_zones_win_over_balance() -> None:
    zone = {"lone": "a", **{f"b{i}": "b" for i in range(4)}}
    lists = Ring(zone, 40).preference_lists(2)
    assert all("lone" in chosen for chosen in lists)
    assert loads(lists)["lone"] == 40 > load_bound(5, 40, 2)


def test_a_zone_that_is_called_like_a_node_is_not_that_node() -> None:
    lists = Ring({"n1": "", "n2": "n1", "n3": "n1"}, 30).preference_lists(2)
    assert all("n1" in chosen for chosen in lists)


@deterministic
@given(st.permutations(sorted(nodes(7, 3))))
def test_lists_depend_on_the_members_not_on_their_order(order: list[str]) -> None:
    zone = nodes(7, 3)
    assert Ring({node: zone[node] for node in order}, 24).preference_lists(3) == Ring(zone, 24).preference_lists(3)


def test_the_placement_of_a_default_cluster_is_pinned() -> None:
    """Changing it would move replicas of clusters that exist."""
    lists = Ring(nodes(5), 12).preference_lists(3)
    assert [" ".join(chosen) for chosen in lists] == PINNED
    assert Ring(nodes(5), 12).preference_list(7, 3) == PINNED[6].split()


@deterministic
@given(st.integers(3, 12), st.integers(1, 3))
def test_when_a_node_joins_about_its_share_of_the_replicas_moves(count: int, replicas: int) -> None:
    before = Ring(nodes(count), 256).preference_lists(replicas)
    after = Ring(nodes(count + 1), 256).preference_lists(replicas)
    moved = sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))
    assert loads(after)[f"n{count + 1}"] > 0
    assert moved <= 1.5 * 256 * replicas / (count + 1)


@deterministic
@given(st.integers(2, 12), st.integers(24, 120))
def test_preferred_leaders_are_spread(count: int, shards: int) -> None:
    leads = Counter(chosen[0] for chosen in Ring(nodes(count), shards).preference_lists(min(3, count)))
    assert max(leads.values()) <= 2 * -(-shards // count)
    assert min(leads[node] for node in nodes(count)) >= 1


def test_neighbouring_shards_have_different_preferred_leaders() -> None:
    leading = [chosen[0] for chosen in Ring(nodes(5), 12).preference_lists(3)]
    assert all(one != other for one, other in pairwise(leading))


def test_too_few_nodes_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"replicas: 4 is not in 1\.\.3"):
        Ring(nodes(3), 12).preference_lists(4)
    with pytest.raises(ValueError, match="nodes"):
        Ring({}, 12)


def test_a_caller_cannot_change_what_the_ring_remembers() -> None:
    ring = Ring(nodes(4), 12)
    ring.preference_list(1, 3).clear()
    assert len(ring.preference_list(1, 3)) == 3
