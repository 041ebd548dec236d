"""What one shard map says to a router: whom to ask for each shard, and where the members listen.

The law: VOTERs come first, in the map's order; LEAVING replicas serve until they have left, so they come last; a LEARNER is not
asked, since it holds nothing yet or is behind, unless somebody says that it leads by now.
"""

from __future__ import annotations

from proto.gen import meta_pb2


class Placement:
    """Of one map; never changed. By shard, 0 being meta: `asked`, the nodes that may lead, likeliest first, `voters` of them,
    and `holders` of any replica."""

    __slots__ = ("addresses", "asked", "cluster_id", "epoch", "holders", "shards", "versions", "voters")

    def __init__(self, shard_map: meta_pb2.ShardMap) -> None:
        self.cluster_id = shard_map.cluster_id
        self.epoch = shard_map.epoch
        self.shards = len(shard_map.shards) - 1
        self.addresses = {member.node: member.address for member in shard_map.members}
        self.versions = [shard.version for shard in shard_map.shards]
        self.holders = [frozenset(replica.node for replica in shard.replicas) for shard in shard_map.shards]
        self.voters = [_nodes(shard, meta_pb2.Replica.VOTER) for shard in shard_map.shards]
        self.asked = [_asked(shard) for shard in shard_map.shards]

    def moved(self, before: Placement) -> frozenset[int]:
        """The shards whose replicas are not those of `before`."""
        changed = zip(self.versions, before.versions, strict=True)
        return frozenset(shard for shard, (now, then) in enumerate(changed) if now != then)


def _asked(shard: meta_pb2.Shard) -> list[str]:
    stages = meta_pb2.Replica
    serving = [*_nodes(shard, stages.VOTER), *_nodes(shard, stages.LEAVING)]
    return list(dict.fromkeys(serving)) or _nodes(shard, stages.LEARNER)


def _nodes(shard: meta_pb2.Shard, stage: meta_pb2.Replica.Stage.ValueType) -> list[str]:
    return [replica.node for replica in shard.replicas if replica.stage == stage]
