"""Nodes that join and leave: names are given once, the birth is remembered, and every node.json can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.local.cluster_file import NUMBER_MAX, ClusterFile, new_cluster
from cluster.local.layout import Layout
from node.config import NodeConfig, read_config


def born(directory: Path, nodes: int = 3, **settings: Any) -> tuple[Layout, ClusterFile]:
    layout = Layout(directory)
    cluster = new_cluster(nodes, min(3, nodes), 12, [], [7001 + i for i in range(nodes)], **settings)
    layout.create(cluster)
    return layout, cluster


def config(layout: Layout, node: str) -> NodeConfig:
    path = layout.node_directory(node) / "node.json"
    return read_config(path.read_bytes(), path)


def refused(problem: str) -> Any:
    return pytest.raises(TenfoldError, match=problem, check=lambda error: error.code is Code.INVALID_ARGUMENT)


def test_a_node_that_joins_asks_those_that_are_there_and_the_birth_does_not_change(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    first = [config(layout, node).first_map().SerializeToString(deterministic=True) for node in cluster.names]
    joined = cluster.join([7011, 7012], ["x", "y"])
    assert [(each.node, each.zone, each.born) for each in joined] == [("n4", "x", False), ("n5", "y", False)]
    layout.write(cluster)
    assert layout.read() == cluster and cluster.names == ["n1", "n2", "n3", "n4", "n5"]
    told = config(layout, "n5")
    assert (told.node, told.address, told.zone, told.born) == ("n5", "127.0.0.1:7012", "y", False)
    assert told.join == [f"127.0.0.1:{port}" for port in (7001, 7002, 7003, 7011)]
    assert (told.cluster_id, told.members, told.shards) == (cluster.cluster_id, [], 0)
    assert [config(layout, f"n{i}").first_map().SerializeToString(deterministic=True) for i in (1, 2, 3)] == first
    cluster.entry("n5").born = True
    layout.write(cluster)
    assert config(layout, "n5").born


def test_a_member_of_the_birth_that_left_stays_in_the_first_map_and_its_port_is_not_given_again(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    cluster.join([7011], [])
    for node in ("n1", "n2", "n4"):
        cluster.remove(node)
    layout.write(cluster)
    again = layout.read()
    assert again == cluster and again.names == ["n3"]
    assert [each.node for each in config(layout, "n3").members] == ["n1", "n2", "n3"]
    assert sorted(again.ports) == [7001, 7002, 7003, 7011]
    with refused("'n2' is not in this cluster any more; its nodes are n3"):
        again.entry("n2")


def test_no_name_is_given_twice_and_there_are_so_many(tmp_path: Path) -> None:
    _, cluster = born(tmp_path)
    given = list(cluster.names)
    while len(given) < NUMBER_MAX:
        (entry,) = cluster.join([8000 + len(given)], [])
        given.append(entry.node)
        cluster.remove(entry.node if len(given) % 2 else cluster.names[0])
    assert given == [f"n{i}" for i in range(1, NUMBER_MAX + 1)]
    with refused("names end with n99 and are never given twice; 1 are not left"):
        cluster.join([9000], [])
    cluster.check()


def test_there_are_no_more_nodes_than_the_limit_and_zones_are_names(tmp_path: Path) -> None:
    _, cluster = born(tmp_path)
    with refused(f"3 nodes and {DEFAULT.nodes_max - 2} more are above {DEFAULT.nodes_max}"):
        cluster.join(range(8000, 8000 + DEFAULT.nodes_max - 2), [])
    with refused("zones: 'A B'"):
        cluster.join([8000], ["A B"])
    assert cluster.names == ["n1", "n2", "n3"], "nothing was changed"


def test_the_last_of_those_that_joined_still_knows_an_address(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path, nodes=1)
    cluster.join([7011], [])
    cluster.remove("n1")
    layout.write(cluster)
    assert config(layout, "n2").join == ["127.0.0.1:7011"]


def test_the_time_until_repair_is_told_to_every_node_and_bounded(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path / "a", repair_after_s=3.5)
    cluster.join([7011], [])
    layout.write(cluster)
    assert layout.read().repair_after_s == 3.5
    assert {config(layout, node).limits(DEFAULT).down_after_ms for node in cluster.names} == {3500}
    layout, _ = born(tmp_path / "b")
    assert config(layout, "n1").limits(DEFAULT) == DEFAULT
    for seconds in (0.0, 2.0, float("nan"), 1e9):
        with refused("repair_after_s: "):
            born(tmp_path / "c", repair_after_s=seconds)


def test_a_purge_removes_what_those_that_left_have_left_behind(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path / "c")
    cluster.join([7011], [])
    layout.write(cluster)
    cluster.remove("n4")
    layout.write(cluster)
    (layout.root / "n5").mkdir()
    assert layout.purge() == ["n5"], "which was never ours"


def test_a_cluster_of_the_format_before_is_read_and_written_in_this_one(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    told = json.loads(layout.cluster_path.read_bytes())
    for later in ("removed", "repair_after_s"):
        del told[later]
    for entry in told["nodes"]:
        del entry["joined"]
    layout.cluster_path.write_text(json.dumps(told | {"format": 1}))
    read = layout.read()
    assert read.nodes == cluster.nodes and not read.removed
    layout.write(read)
    assert json.loads(layout.cluster_path.read_bytes())["format"] == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"removed": [{"node": "n2", "zone": "", "port": 1}]}, "two have the same name"),
        ({"removed": [{"node": "other", "zone": "", "port": 1}]}, "'other' must match"),
        ({"repair_after_s": 0.5}, "repair_after_s: 0.5, must be above 2"),
        ({"nodes": []}, "nodes: 0"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    layout, _ = born(tmp_path)
    layout.cluster_path.write_text(json.dumps(json.loads(layout.cluster_path.read_bytes()) | change))
    with refused(problem):
        layout.read()
