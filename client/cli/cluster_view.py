"""What `status` and `ring` show, made from what the nodes say: one JSON document and the rows of one table each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cluster.local.ask import leaders
from cluster.local.local_cluster import NodeStatus
from cluster.local.members import move_text
from cluster.membership.state import state_of
from cluster.ring.ring import arc
from cluster.ring.shard_map import data_shards
from cluster.types import META_SHARD
from proto.gen import meta_pb2, node_pb2

STATUS_COLUMNS = (
    "node",
    "zone",
    "address",
    "state",
    "member",
    "pid",
    "leads",
    "replicas",
    "peers",
    "log",
    "memory",
    "cpu s",
    "trouble",
)
RING_COLUMNS = ("shard", "arc", "leader", "replicas", "applied", "lag")
NONE = "-"
MARKS = {"voter": "", "learner": "+", "leaving": "-"}


def size(count: int) -> str:
    """A number of bytes for a human."""
    scaled, unit = float(count), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if scaled < 1024:
            break
        scaled, unit = scaled / 1024, bigger
    return f"{count} B" if unit == "B" else f"{scaled:.1f} {unit}"


def member_states(shard_map: meta_pb2.ShardMap) -> dict[str, str]:
    """What the cluster thinks of each member: joining, up, suspect, down, leaving."""
    return {member.node: state_of(member).word for member in shard_map.members}


def node_document(status: NodeStatus, member: str | None = None) -> dict[str, Any]:
    """One node of `status --json`; what it did not answer is absent. `state` is its process's, `member` the cluster's word."""
    document: dict[str, Any] = {
        "node": status.node,
        "zone": status.zone,
        "address": status.address,
        "state": str(status.condition),
        "member": member,
        "pid": status.pid,
    }
    if status.trouble:
        document["trouble"] = status.trouble
    if status.reply is not None:
        reply = status.reply
        document |= {
            "incarnation": reply.incarnation,
            "epoch": reply.epoch,
            "leads": [each.shard for each in reply.replicas if each.role == "leader"],
            "replicas": [each.shard for each in reply.replicas],
            "quarantined": {str(each.shard): each.quarantine for each in reply.replicas if each.quarantine},
            "peers_up": list(reply.peers_up),
            "log_bytes": reply.log_bytes,
            "resident_bytes": reply.resident_bytes,
            "cpu_seconds": reply.cpu_seconds,
            "counters": dict(reply.counters),
        }
    return document


def status_row(status: NodeStatus, member: str | None = None) -> list[object]:
    told = node_document(status)
    row: list[object] = [status.node, status.zone or NONE, status.address, str(status.condition)]
    row += [member or NONE, status.pid or NONE]
    if status.reply is None:
        silent = "" if status.pid is None or status.condition != "running" else "does not answer"
        return [*row, NONE, NONE, NONE, NONE, NONE, NONE, status.trouble or silent]
    alike: dict[str, list[str]] = {}
    for shard, reason in told["quarantined"].items():
        alike.setdefault(reason, []).append(shard_name(int(shard)))
    trouble = "; ".join(f"{', '.join(shards)} quarantined: {reason}" for reason, shards in alike.items())
    counts = [len(told["leads"]), len(told["replicas"]), len(told["peers_up"])]
    used = [size(told["log_bytes"]), size(told["resident_bytes"]), f"{told['cpu_seconds']:.1f}"]
    return [*row, *counts, *used, trouble]


def move_document(move: node_pb2.Move) -> dict[str, Any]:
    """`from` is null for a further replica, `to` for one replica less."""
    return {"shard": move.shard, "from": getattr(move, "from") or None, "to": move.to or None, "why": move.why}


MOVE_COLUMNS = ("shard", "from", "to", "why")


def move_row(move: node_pb2.Move) -> list[object]:
    return [shard_name(move.shard), getattr(move, "from") or NONE, move.to or NONE, move.why]


def moves_document(driver: node_pb2.DriverStatusReply | None) -> dict[str, Any]:
    """What moves, as the meta leader tells; null where it tells nothing."""
    if driver is None:
        return {"rebalancing": None, "moving": None, "waiting": None, "stuck": None}
    return {
        "rebalancing": driver.rebalancing,
        "moving": [move_document(move) for move in driver.moving],
        "waiting": [move_document(move) for move in driver.waiting],
        "stuck": driver.stuck,
    }


def moves_text(driver: node_pb2.DriverStatusReply | None) -> list[str]:
    """Lines below a table; none if nothing moves and nothing is to."""
    if driver is None:
        return ["no meta leader tells what moves"]
    lines = []
    if driver.moving or driver.waiting:
        moving = ", ".join(f"{move_text(move)} ({move.why})" for move in driver.moving)
        counted = f"{_counted(len(driver.moving), 'replica moves', 'replicas move')}, {_counted(len(driver.waiting), 'waits', 'wait')}"
        lines.append(f"{counted}{': ' if moving else ''}{moving}")
    if driver.stuck:
        lines.append(f"stuck: {driver.stuck}")
    return lines


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def shard_name(shard: int) -> str:
    return "meta" if shard == META_SHARD else str(shard)


def ring_documents(shard_map: meta_pb2.ShardMap, statuses: Sequence[NodeStatus]) -> list[dict[str, Any]]:
    """One document a shard, meta first. `applied_index` is the leader's; a replica's lag is how many committed entries it
    has not applied, counted to the highest commit index known of the shard; the shard's is the largest of them. Without a
    leader the shard's are unknown."""
    replies = {each.node: each.reply for each in statuses if each.reply is not None}
    leading = leaders(replies.values())
    return [
        _shard_document(shard, data_shards(shard_map), leading.get(shard.id), replies) for shard in shard_map.shards
    ]


def _shard_document(
    shard: meta_pb2.Shard, shards: int, leader: str | None, replies: dict[str, node_pb2.StatusReply]
) -> dict[str, Any]:
    told = {node: _replica(reply.replicas, shard.id) for node, reply in replies.items()}
    known = {node: replica for node, replica in told.items() if replica is not None}
    commit = max((replica.commit_index for replica in known.values()), default=0)
    replicas = [
        _replica_document(each, _replica(replies[each.node].replicas, shard.id, each.id), commit)
        if each.node in replies
        else _replica_document(each, None, commit)
        for each in shard.replicas
    ]
    preferred = next((each.node for each in shard.replicas if each.stage == meta_pb2.Replica.VOTER), None)
    low, high = arc(shard.id, shards) if shard.id != META_SHARD else (0, 0)
    return {
        "shard": shard.id,
        "version": shard.version,
        "arc": None if shard.id == META_SHARD else [f"{low:016x}", f"{high - 1:016x}"],
        "leader": leader,
        "term": known[leader].term if leader is not None else None,
        "preferred_leader": preferred,
        "applied_index": known[leader].applied_index if leader is not None else None,
        "lag": max((each["lag"] for each in replicas if each["lag"] is not None), default=None) if leader else None,
        "replicas": replicas,
    }


def _replica(replicas: Iterable[node_pb2.ReplicaStatus], shard: int, number: int = 0) -> node_pb2.ReplicaStatus | None:
    """What a node says of its replica of `shard`, with `number` only of that one: for a moment it may hold the next already."""
    return next(
        (each for each in replicas if each.shard == shard and (not number or each.replica in (0, number))), None
    )


def _replica_document(replica: meta_pb2.Replica, told: node_pb2.ReplicaStatus | None, commit: int) -> dict[str, Any]:
    return {
        "node": replica.node,
        "replica": replica.id,
        "stage": meta_pb2.Replica.Stage.Name(replica.stage).lower(),
        "role": told.role if told is not None else None,
        "applied_index": told.applied_index if told is not None else None,
        "lag": max(0, commit - told.applied_index) if told is not None else None,
        "quarantine": told.quarantine if told is not None else "",
    }


def ring_row(document: dict[str, Any]) -> list[object]:
    """A learner is marked with a plus, one that leaves with a minus, a quarantined one with an exclamation mark; one that does not
    answer stands in parentheses."""
    names = []
    for each in document["replicas"]:
        name = MARKS[each["stage"]] + each["node"] + ("!" if each["quarantine"] else "")
        names.append(name if each["role"] is not None else f"({name})")
    around = "" if document["arc"] is None else "{}..{}".format(*(edge[:8] for edge in document["arc"]))
    return [
        shard_name(document["shard"]),
        around,
        document["leader"] or NONE,
        " ".join(names),
        NONE if document["applied_index"] is None else document["applied_index"],
        NONE if document["lag"] is None else document["lag"],
    ]
