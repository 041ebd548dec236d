"""The shard map: who the members are and which node holds which replica of which shard.

This module makes the first map of a cluster and reads any map. The laws, checked by `validate`: shard 0 is meta and the shards
are numbered without a gap; the replicas of a shard are on distinct members and have ids that are unique for ever, all below
`next_replica_id`; names and addresses are unique. The epoch orders maps; a shard's version orders its placements.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.limits import DEFAULT, Limits
from cluster.ring.ring import Ring
from cluster.types import META_SHARD, node_name
from proto.gen import meta_pb2

CLUSTER_ID_BYTES = 16


def meta_nodes(nodes: Sequence[str]) -> list[str]:
    """The nodes that hold meta: the first three members, five from five nodes on, all if there are fewer."""
    return list(nodes[: 5 if len(nodes) >= 5 else 3])


def first_map(
    cluster_id: bytes,
    members: Sequence[tuple[str, str, str]],
    shards: int,
    replication_factor: int,
    *,
    limits: Limits = DEFAULT,
) -> meta_pb2.ShardMap:
    """The map a cluster is born with: epoch 1, version 1 of every shard, replica ids 1..R in preference order.

    `members` are (node, address, zone) in the order of their joining. ValueError names the field that makes no sense.
    """
    if not 1 <= len(members) <= limits.nodes_max:
        raise ValueError(f"nodes: {len(members)} is not in 1..{limits.nodes_max}")
    if not 1 <= shards <= limits.shards_max:
        raise ValueError(f"shards: {shards} is not in 1..{limits.shards_max}")
    if not 1 <= replication_factor <= len(members):
        raise ValueError(f"replicas: {replication_factor} is not in 1..{len(members)}, the number of nodes")
    zones = {node: zone for node, _, zone in members}
    if len(zones) < len(members):
        raise ValueError("nodes: two members have the same name")
    ring = Ring(zones, shards, virtual_nodes=limits.virtual_nodes)
    placed = [meta_nodes([node for node, _, _ in members]), *ring.preference_lists(replication_factor)]
    built = meta_pb2.ShardMap(
        cluster_id=cluster_id,
        epoch=1,
        replication_factor=replication_factor,
        members=[meta_pb2.Member(node=node, address=address, zone=zone) for node, address, zone in members],
        shards=[_first_shard(shard, nodes) for shard, nodes in enumerate(placed)],
    )
    validate(built)
    return built


def _first_shard(shard: int, nodes: Sequence[str]) -> meta_pb2.Shard:
    replicas = [meta_pb2.Replica(id=number, node=node) for number, node in enumerate(nodes, 1)]
    return meta_pb2.Shard(id=shard, version=1, replicas=replicas, next_replica_id=len(nodes) + 1)


def validate(shard_map: meta_pb2.ShardMap) -> None:
    """ValueError that says which law of the map is broken."""
    if len(shard_map.cluster_id) != CLUSTER_ID_BYTES:
        raise ValueError(f"cluster_id: must have {CLUSTER_ID_BYTES} bytes, not {len(shard_map.cluster_id)}")
    if shard_map.epoch < 1:
        raise ValueError("epoch: must be positive")
    nodes = [node_name(member.node) for member in shard_map.members]
    if len(set(nodes)) < len(nodes):
        raise ValueError("members: two have the same name")
    addresses = [member.address for member in shard_map.members]
    if "" in addresses or len(set(addresses)) < len(addresses):
        raise ValueError("members: each needs an address of its own")
    if len(shard_map.shards) < 2:
        raise ValueError("shards: there must be meta and at least one data shard")
    for position, shard in enumerate(shard_map.shards):
        _validate_shard(shard, position, set(nodes))


def _validate_shard(shard: meta_pb2.Shard, position: int, nodes: set[str]) -> None:
    if shard.id != position:
        raise ValueError(f"shards: number {position} has the id {shard.id}")
    if shard.version < 1:
        raise ValueError(f"shard {shard.id}: its version must be positive")
    if not shard.replicas:
        raise ValueError(f"shard {shard.id}: has no replica")
    holders = [replica.node for replica in shard.replicas]
    if unknown := sorted(set(holders) - nodes):
        raise ValueError(f"shard {shard.id}: {unknown[0]!r} is not a member")
    if len(set(holders)) < len(holders):
        raise ValueError(f"shard {shard.id}: two replicas are on one node")
    ids = [replica.id for replica in shard.replicas]
    if len(set(ids)) < len(ids) or min(ids) < 1 or max(ids) >= shard.next_replica_id:
        raise ValueError(f"shard {shard.id}: replica ids must be distinct, positive and below {shard.next_replica_id}")


def data_shards(shard_map: meta_pb2.ShardMap) -> int:
    """How many data shards there are; meta is counted apart."""
    return len(shard_map.shards) - 1


def shard(shard_map: meta_pb2.ShardMap, number: int) -> meta_pb2.Shard:
    """Shard `number`, 0 for meta. ValueError if there is none."""
    if not META_SHARD <= number < len(shard_map.shards):
        raise ValueError(f"shard: {number} is not in {META_SHARD}..{len(shard_map.shards) - 1}")
    return shard_map.shards[number]


def replicas_of(shard_map: meta_pb2.ShardMap, number: int) -> list[meta_pb2.Replica]:
    """The replicas of a shard, the preferred leader's first. ValueError if there is no such shard."""
    return list(shard(shard_map, number).replicas)


def shards_on(shard_map: meta_pb2.ShardMap, node: str) -> list[int]:
    """The shards with a replica on `node`, meta included, in order; [] for a node that holds none."""
    return [shard.id for shard in shard_map.shards if any(replica.node == node for replica in shard.replicas)]


def replica_on(shard_map: meta_pb2.ShardMap, number: int, node: str) -> int | None:
    """The id of the replica of shard `number` on `node`; None where there is none."""
    return next((replica.id for replica in shard(shard_map, number).replicas if replica.node == node), None)


def member(shard_map: meta_pb2.ShardMap, node: str) -> meta_pb2.Member:
    """ValueError, listing the members, if `node` is not one."""
    for each in shard_map.members:
        if each.node == node:
            return each
    raise ValueError(f"node: {node!r} is not a member; the members are {', '.join(m.node for m in shard_map.members)}")
