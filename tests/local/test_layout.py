"""The directory of a local cluster: born whole, read strictly, purged without touching what is not its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.local.cluster_file import FORMAT, ClusterFile, new_cluster
from cluster.local.layout import Layout, RunFile
from node.config import read_config


def born(directory: Path, nodes: int = 3) -> tuple[Layout, ClusterFile]:
    layout = Layout(directory)
    cluster = new_cluster(nodes, min(3, nodes), 12, ["a", "b"], [7001 + i for i in range(nodes)])
    layout.create(cluster)
    return layout, cluster


def refused(code: Code, problem: str) -> Any:
    return pytest.raises(TenfoldError, match=problem, check=lambda error: error.code is code)


def test_what_is_written_is_read_and_every_node_understands_its_part(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path / "deep" / "c")
    assert layout.read() == cluster
    assert [(each.node, each.zone, each.address) for each in cluster.nodes] == [
        ("n1", "a", "127.0.0.1:7001"),
        ("n2", "b", "127.0.0.1:7002"),
        ("n3", "a", "127.0.0.1:7003"),
    ]
    for entry in cluster.nodes:
        path = layout.node_directory(entry.node) / "node.json"
        config = read_config(path.read_bytes(), path)
        assert (config.node, config.address, config.zone) == (entry.node, entry.address, entry.zone)
        assert not config.born
        assert (config.cluster_id, config.shards, config.replication_factor) == (cluster.cluster_id, 12, 3)
        assert [(each.node, each.address, each.zone) for each in config.members] == [
            (each.node, each.address, each.zone) for each in cluster.nodes
        ]


def test_every_birth_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids = {born(tmp_path / name)[1].cluster_id for name in "abc"}
    assert len(ids) == 3


def test_a_second_birth_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    with refused(Code.ALREADY_EXISTS, "holds a cluster already"):
        layout.create(new_cluster(1, 1, 1, [], [7001]))
    assert layout.read() == cluster


def test_an_interrupted_birth_is_done_again_but_data_without_its_cluster_is_not_overwritten(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    layout.cluster_path.unlink()
    layout.create(cluster)
    layout.cluster_path.unlink()
    (layout.node_directory("n2") / "log").mkdir()
    for attempt in (lambda: layout.create(cluster), layout.read):
        with refused(Code.INVALID_ARGUMENT, "n2 holds log, but .*cluster.json is missing"):
            attempt()
    (layout.node_directory("n2") / "log").rmdir()
    newer = layout.node_directory("n3") / "node.json"
    newer.write_text('{"format": 2}')
    with refused(Code.INVALID_ARGUMENT, "n3/node.json has format 2"):
        layout.create(cluster)
    assert newer.read_text() == '{"format": 2}' and not layout.exists()


def test_writing_again_mends_an_interrupted_change(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    path = layout.node_directory("n1") / "node.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b":7002", b":9999"))
    layout.write(cluster)
    assert path.read_bytes() == whole


def test_what_is_not_this_nodes_is_not_written_to(tmp_path: Path) -> None:
    layout, cluster = born(tmp_path)
    assert [layout.refusal(cluster, node) for node in cluster.names] == ["", "", ""]
    first, second = (layout.node_directory(node) / "node.json" for node in ("n1", "n2"))
    second.write_bytes(first.read_bytes())
    assert "is of node 'n1' of cluster" in layout.refusal(cluster, "n2")
    cluster.entry("n1").born = cluster.entry("n2").born = True
    layout.write(cluster, keep=["n2"])
    assert read_config(first.read_bytes(), first).born and b'"born":false' in second.read_bytes()
    assert layout.read() == cluster
    second.write_bytes(b"torn")
    assert layout.refusal(cluster, "n2") == "", "what nobody can read is written again"


@pytest.mark.parametrize(
    ("last", "error"),
    [
        ("node: state/LOCK: taken", "node: state/LOCK: taken"),
        ('{"event": "stopped", "level": "info"}', ""),
        (
            '{"event": "stopping after a failure", "error": "disk", "level": "critical"}',
            "stopping after a failure disk",
        ),
        ("", ""),
    ],
)
def test_the_last_error_of_a_log_is_its_last_line_if_that_is_one(tmp_path: Path, last: str, error: str) -> None:
    layout, _ = born(tmp_path)
    layout.log_path("n1").write_text(f'{{"event": "first", "level": "error"}}\n{last}\n')
    assert layout.last_error("n1") == error


def test_a_directory_without_a_cluster_says_how_to_make_one(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with refused(Code.INVALID_ARGUMENT, "holds no cluster; `tenfold up --dir"):
            Layout(directory).read()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, newer than this program's {FORMAT}"),
        ({"format": FORMAT + 1, "shards": "many", "new": 1}, "newer than"),
        ({"shards": "many"}, r"cluster.json: .*\$.shards"),
        ({"shards": 0}, r"shards: 0 is not in"),
        ({"replication_factor": 4}, "replicas: 4 replicas need as many nodes"),
        ({"cluster_id": "xyz"}, "cluster.json"),
        ({"cluster_id": "00"}, "16 bytes"),
        ({"surprise": 1}, "surprise"),
        ({"nodes": [{"node": "../x", "zone": "", "port": 1}] * 3}, "must match"),
        ({"nodes": [{"node": "n1", "zone": "", "port": 1}] * 3}, "two have the same name"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    layout, _ = born(tmp_path)
    layout.cluster_path.write_text(json.dumps(json.loads(layout.cluster_path.read_text()) | change))
    with refused(Code.INVALID_ARGUMENT, problem):
        layout.read()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    layout, _ = born(tmp_path)
    layout.cluster_path.write_bytes(content)
    with refused(Code.INVALID_ARGUMENT, "cluster.json"):
        layout.read()


@pytest.mark.parametrize(
    ("nodes", "replicas", "shards", "zones", "problem"),
    [
        (2, 3, 12, [], "replicas: 3 replicas need as many nodes, and there are 2"),
        (0, 1, 12, [], "nodes: 0"),
        (65, 1, 12, [], r"nodes: 65 is not in 1\.\.64"),
        (3, 0, 12, [], "replicas: 0"),
        (3, 3, 0, [], "shards: 0"),
        (3, 3, 12, ["a", "../b"], r"zones: '\.\./b'"),
        (3, 3, 12, [""], "zones: ''"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    nodes: int, replicas: int, shards: int, zones: list[str], problem: str
) -> None:
    with refused(Code.INVALID_ARGUMENT, problem):
        new_cluster(nodes, replicas, shards, zones, list(range(7000, 7000 + nodes)))


def test_an_unknown_node_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with refused(Code.INVALID_ARGUMENT, "'n9' is not in this cluster; its nodes are n1, n2, n3"):
        born(tmp_path)[1].entry("n9")


def test_run_json_is_believed_only_if_it_is_whole(tmp_path: Path) -> None:
    layout, _ = born(tmp_path)
    assert layout.read_run("n1") is None
    layout.run_path("n1").write_text('{"pid": 1, "addr')
    assert layout.read_run("n1") is None
    layout.run_path("n1").write_text('{"pid": 12, "address": "127.0.0.1:7001", "incarnation": 3}')
    assert layout.read_run("n1") == RunFile(12, "127.0.0.1:7001", 3)


def test_a_purge_removes_the_cluster_and_nothing_else(tmp_path: Path) -> None:
    layout, _ = born(tmp_path / "c")
    (layout.node_directory("n1") / "state").mkdir()
    (layout.root / "thesis.txt").write_text("mine")
    (layout.root / "n4").mkdir()
    layout.lock_path.touch()
    assert layout.purge() == ["n4", "thesis.txt"]
    assert sorted(path.name for path in layout.root.iterdir()) == ["n4", "thesis.txt"]
    with refused(Code.INVALID_ARGUMENT, "holds no cluster"):
        layout.purge()


def test_a_purge_of_a_directory_with_nothing_else_removes_it(tmp_path: Path) -> None:
    layout, _ = born(tmp_path / "c")
    assert layout.purge() == []
    assert not layout.root.exists()


def test_the_log_is_read_from_its_end_and_followed_by_whole_lines(tmp_path: Path) -> None:
    layout, _ = born(tmp_path)
    assert layout.last_lines("n1", 5) == []
    assert layout.lines_from("n1", 0) == ([], 0)
    layout.log_path("n1").write_text("one\ntwo\nthr")
    assert layout.last_lines("n1", 2) == ["two", "thr"]
    lines, offset = layout.lines_from("n1", 4)
    assert (lines, offset) == (["two"], 8)
    with layout.log_path("n1").open("a") as log:
        log.write("ee\n")
    assert layout.lines_from("n1", offset) == (["three"], 14)
    layout.log_path("n1").write_text("new\n")
    assert layout.lines_from("n1", 14) == (["new"], 4)
