"""What `status` and `ring` make of the nodes' answers, above all of those that are missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.cli import cluster_view as view
from cluster.local.launcher import Condition
from cluster.local.local_cluster import NodeStatus
from cluster.ring.shard_map import first_map
from proto.gen import meta_pb2, node_pb2

MEMBERS = [(f"n{i}", f"127.0.0.1:{7000 + i}", "") for i in (1, 2, 3)]
MAP = first_map(bytes(16), MEMBERS, 1, 3)


def says(node: str, *replicas: node_pb2.ReplicaStatus) -> NodeStatus:
    reply = node_pb2.StatusReply(node=node, replicas=replicas, resident_bytes=3 << 20, cpu_seconds=1.25)
    return NodeStatus(node, "", f"127.0.0.1:700{node[1]}", Condition.RUNNING, 100, reply)


def silent(node: str, condition: Condition) -> NodeStatus:
    return NodeStatus(node, "z", "127.0.0.1:7009", condition, None if condition is Condition.DOWN else 9, None)


def replica(role: str, applied: int, commit: int, term: int = 4, quarantine: str = "") -> node_pb2.ReplicaStatus:
    return node_pb2.ReplicaStatus(
        shard=1, role=role, term=term, applied_index=applied, commit_index=commit, quarantine=quarantine
    )


def test_lag_is_counted_to_the_highest_commit_known() -> None:
    statuses = [
        says("n1", replica("leader", 95, 100)),
        says("n2", replica("follower", 60, 90)),
        says("n3", replica("quarantined", 0, 0, quarantine="crc of record 5")),
    ]
    meta, shard = view.ring_documents(MAP, statuses)
    assert meta["leader"] is None and meta["applied_index"] is None and meta["lag"] is None
    assert (shard["leader"], shard["term"], shard["applied_index"], shard["lag"]) == ("n1", 4, 95, 100)
    assert {each["node"]: each["lag"] for each in shard["replicas"]} == {"n1": 5, "n2": 40, "n3": 100}
    row = view.ring_row(shard)
    assert "n3!" in str(row[3]).split() and row[2] == "n1"


def test_a_replica_whose_node_is_silent_is_marked_and_does_not_count() -> None:
    statuses = [says("n1", replica("leader", 7, 7)), silent("n2", Condition.PAUSED), silent("n3", Condition.DOWN)]
    _, shard = view.ring_documents(MAP, statuses)
    assert shard["lag"] == 0
    assert sorted(str(view.ring_row(shard)[3]).split()) == ["(n2)", "(n3)", "n1"]
    _, none = view.ring_documents(MAP, [silent("n1", Condition.DOWN)])
    assert view.ring_row(none)[2:] == ["-", " ".join(f"({r.node})" for r in MAP.shards[1].replicas), "-", "-"]


def test_without_a_leader_nobody_knows_what_is_lacking() -> None:
    _, shard = view.ring_documents(MAP, [says("n1", replica("follower", 5, 9)), says("n2", replica("candidate", 7, 7))])
    assert (shard["leader"], shard["applied_index"], shard["lag"]) == (None, None, None)
    assert view.ring_row(shard)[2] == "-" and view.ring_row(shard)[4:] == ["-", "-"]
    assert {each["node"]: each["lag"] for each in shard["replicas"]} == {"n1": 4, "n2": 2, "n3": None}


def test_the_arc_is_shown_by_its_first_and_last_hash() -> None:
    shard = view.ring_documents(first_map(bytes(16), MEMBERS, 2, 1), [])[2]
    assert shard["arc"] == ["8" + "0" * 15, "f" * 16]
    assert view.ring_row(shard)[1] == "80000000..ffffffff"


def test_status_rows_have_a_cell_for_every_column() -> None:
    for status in (
        says("n1", replica("leader", 1, 1)),
        silent("n2", Condition.DOWN),
        silent("n2", Condition.PAUSED),
        silent("n2", Condition.RUNNING),
    ):
        assert len(view.status_row(status)) == len(view.STATUS_COLUMNS)
    told = dict(zip(view.STATUS_COLUMNS, view.status_row(says("n1", replica("leader", 1, 1))), strict=True))
    assert (told["leads"], told["replicas"], told["memory"], told["trouble"]) == (1, 1, "3.0 MiB", "")
    ill = says("n1", replica("quarantined", 0, 0, quarantine="torn"))
    assert view.status_row(ill)[-1] == "1 quarantined: torn"
    gone = [node_pb2.ReplicaStatus(shard=shard, role="quarantined", quarantine="its log is gone") for shard in (0, 1)]
    assert view.status_row(says("n1", *gone))[-1] == "meta, 1 quarantined: its log is gone"
    down = replace(silent("n2", Condition.DOWN), trouble="node: no state")
    assert view.status_row(down)[-1] == view.node_document(down)["trouble"] == "node: no state"
    assert view.node_document(ill)["quarantined"] == {"1": "torn"}
    assert view.status_row(silent("n2", Condition.RUNNING))[-1] == "does not answer"
    assert "replicas" not in view.node_document(silent("n2", Condition.RUNNING))


def test_what_the_cluster_thinks_of_a_node_stands_beside_what_its_process_does() -> None:
    shard_map = meta_pb2.ShardMap()
    shard_map.CopyFrom(MAP)
    shard_map.members[1].state = meta_pb2.Member.SUSPECT
    shard_map.members[2].state = meta_pb2.Member.LEAVING
    members = view.member_states(shard_map)
    assert members == {"n1": "up", "n2": "suspect", "n3": "leaving"}
    at = view.STATUS_COLUMNS.index("member")
    assert view.status_row(silent("n2", Condition.PAUSED), members["n2"])[at] == "suspect"
    assert view.status_row(silent("n4", Condition.RUNNING), members.get("n4"))[at] == "-"
    assert view.node_document(silent("n3", Condition.RUNNING), members["n3"])["member"] == "leaving"


def test_replicas_that_come_and_go_are_marked_and_told_by_their_own_id() -> None:
    """n1 holds the one that leaves and, in its place, its successor, which is quarantined already."""
    shard_map = meta_pb2.ShardMap()
    shard_map.CopyFrom(MAP)
    row = shard_map.shards[1]
    first = next(each for each in row.replicas if each.node == "n1")
    first.stage = meta_pb2.Replica.LEAVING
    voter = next(each.node for each in row.replicas if each.node != "n1")
    row.replicas.add(id=9, node="n1", stage=meta_pb2.Replica.LEARNER)
    old = replica("leader", 8, 9)
    old.replica = first.id
    new = replica("quarantined", 0, 0, quarantine="torn")
    new.replica = 9
    shard = view.ring_documents(shard_map, [says("n1", old, new)])[1]
    assert [(each["stage"], each["role"]) for each in shard["replicas"] if each["node"] == "n1"] == [
        ("leaving", "leader"),
        ("learner", "quarantined"),
    ]
    assert shard["preferred_leader"] == voter
    assert {"-n1", "+n1!"} <= set(str(view.ring_row(shard)[3]).split())


def test_moves_are_told_and_their_absence_too() -> None:
    move = node_pb2.Move(shard=4, to="n4", why="rebalance", **{"from": "n1"})
    further = node_pb2.Move(to="n5", why="meta")
    driver = node_pb2.DriverStatusReply(moving=[move], waiting=[further], rebalancing=True, stuck="n9 is away")
    assert view.moves_document(driver) == {
        "rebalancing": True,
        "moving": [{"shard": 4, "from": "n1", "to": "n4", "why": "rebalance"}],
        "waiting": [{"shard": 0, "from": None, "to": "n5", "why": "meta"}],
        "stuck": "n9 is away",
    }
    assert view.moves_text(driver) == [
        "1 replica moves, 1 waits: shard 4 n1 -> n4 (rebalance)",
        "stuck: n9 is away",
    ]
    assert view.move_row(further) == ["meta", "-", "n5", "meta"]
    assert view.moves_text(node_pb2.DriverStatusReply()) == []
    assert view.moves_document(None)["moving"] is None and view.moves_text(None)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (9 << 50, "9216.0 TiB")]
)
def test_sizes_for_humans(count: int, shown: str) -> None:
    assert view.size(count) == shown
