"""When does a node count again, and when is a cluster whole?

A node that was started counts as down until it answers, every shard it votes in has a leader, and it has applied what that
leader had committed when all this was first true. Until then another loss could take a majority of what is caught up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cluster.local.ask import leaders as leaders_of
from proto.gen import meta_pb2, node_pb2


class Goal(NamedTuple):
    """What a node must have applied: shard to log index."""

    applied: dict[int, int]

    def reached(self, reply: node_pb2.StatusReply | None) -> bool:
        if reply is None:
            return False
        applied = {replica.shard: replica.applied_index for replica in reply.replicas if not replica.quarantine}
        return all(applied.get(shard, -1) >= index for shard, index in self.applied.items())


def commit_indexes(replies: Mapping[str, node_pb2.StatusReply], leaders: Mapping[int, str]) -> dict[int, int]:
    """Shard to what its leader has committed, of shards whose leader answered."""
    return {
        replica.shard: replica.commit_index
        for node, reply in replies.items()
        for replica in reply.replicas
        if leaders.get(replica.shard) == node
    }


def goal_of(
    node: str, held: set[int], replies: Mapping[str, node_pb2.StatusReply], leaders: Mapping[int, str]
) -> Goal | None:
    """The goal for `node`, which holds the shards `held`; None while it does not answer or a shard of its has no leader."""
    committed = commit_indexes(replies, leaders)
    if node not in replies or not held <= committed.keys():
        return None
    return Goal({shard: committed[shard] for shard in held})


def quarantined(replies: Mapping[str, node_pb2.StatusReply]) -> list[str]:
    """Replicas that were found corrupt, for people."""
    return [
        f"shard {replica.shard} on {node}: {replica.quarantine}"
        for node, reply in sorted(replies.items())
        for replica in reply.replicas
        if replica.quarantine
    ]


def voting(shard_map: meta_pb2.ShardMap) -> dict[int, frozenset[str]]:
    """Shard (0 is meta) to the nodes that hold a voter of it, by the map."""
    return {
        shard.id: frozenset(each.node for each in shard.replicas if each.stage == meta_pb2.Replica.VOTER)
        for shard in shard_map.shards
    }


def moving(shard_map: meta_pb2.ShardMap) -> list[int]:
    """The shards whose replicas are changing."""
    return [
        shard.id
        for shard in shard_map.shards
        if any(replica.stage != meta_pb2.Replica.VOTER for replica in shard.replicas)
    ]


def missing(
    holders: Mapping[int, frozenset[str]], replies: Mapping[str, node_pb2.StatusReply], goals: dict[str, Goal]
) -> str:
    """The first thing that keeps the cluster from being whole, "" if nothing does. `holders` as `voting` tells; sets `goals` where
    they are known, so that the next look asks for no more than this one."""
    if bad := quarantined(replies):
        return f"a replica is quarantined: {bad[0]}"
    leaders = leaders_of(replies.values())
    for node in sorted({node for nodes in holders.values() for node in nodes}):
        if node not in replies:
            return f"{node} does not answer"
        held = {shard for shard, nodes in holders.items() if node in nodes}
        goal = goals.get(node) or goal_of(node, held, replies, leaders)
        if goal is None:
            return f"no leader answers for shards {sorted(held - leaders.keys())}"
        goals[node] = goal
        if not goal.reached(replies[node]):
            return f"{node} has not caught up"
    return ""
