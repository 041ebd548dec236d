"""When does a node count again, and when has a cluster healed?

A node that was started counts as down until it answers, every shard it holds has a leader, and it has applied what that
leader had committed when all this was first true. Until then another kill could take a majority of what is caught up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from proto.gen import node_pb2


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
