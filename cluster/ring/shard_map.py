"""The shard map: who the members are and which node holds which replica of which shard.

This module makes the first map of a cluster and reads any map. The laws, checked by `validate`: shard 0 is meta and the shards
are numbered without a gap; the replicas of a shard are on members, two of them on one node only while one of those leaves, and
have ids that are unique for ever, all below `next_replica_id`; each shard has a voter, or a learner in the place of its last;
names are unique and never those of members that were. Addresses are unique at birth; later two members may for a moment
share one, when they swapped and the map hears of one after the other. The epoch orders maps; a shard's version orders its
placements.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from cluster.limits import DEFAULT, Limits
from cluster.ring.ring import Ring
from cluster.types import META_SHARD, node_name
from proto.gen import meta_pb2

CLUSTER_ID_BYTES = 16

VOTER, LEARNER, LEAVING = meta_pb2.Replica.VOTER, meta_pb2.Replica.LEARNER, meta_pb2.Replica.LEAVING


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
    validate_first(built)
    return built


def _first_shard(shard: int, nodes: Sequence[str]) -> meta_pb2.Shard:
    replicas = [meta_pb2.Replica(id=number, node=node, epoch=1) for number, node in enumerate(nodes, 1)]
    return meta_pb2.Shard(id=shard, version=1, replicas=replicas, next_replica_id=len(nodes) + 1)


def validate_first(shard_map: meta_pb2.ShardMap) -> None:
    """The laws of a first map: ValueError as from `validate`, or because two addresses are the same."""
    validate(shard_map)
    addresses = [member.address for member in shard_map.members]
    if len(set(addresses)) < len(addresses):
        raise ValueError("members: each needs an address of its own")


def validate(shard_map: meta_pb2.ShardMap, *, limits: Limits = DEFAULT) -> None:
    """ValueError that says which law of the map is broken."""
    if len(shard_map.cluster_id) != CLUSTER_ID_BYTES:
        raise ValueError(f"cluster_id: must have {CLUSTER_ID_BYTES} bytes, not {len(shard_map.cluster_id)}")
    if shard_map.epoch < 1:
        raise ValueError("epoch: must be positive")
    nodes = {node_name(member.node) for member in shard_map.members}
    if len(nodes) < len(shard_map.members):
        raise ValueError("members: two have the same name")
    for each in shard_map.members:
        if not each.address:
            raise ValueError(f"members: {each.node!r} has no address")
        if each.state not in meta_pb2.Member.State.values():
            raise ValueError(f"members: {each.node!r} is in state {each.state}, which is none")
    _validate_removed(shard_map.removed, nodes, limits)
    if len(shard_map.shards) < 2:
        raise ValueError("shards: there must be meta and at least one data shard")
    for position, shard in enumerate(shard_map.shards):
        if shard.id != position:
            raise ValueError(f"shards: number {position} has the id {shard.id}")
        validate_shard(shard, nodes, shard_map.epoch)


def _validate_removed(removed: Sequence[str], nodes: Set[str], limits: Limits) -> None:
    names = {node_name(name) for name in removed}
    if len(names) < len(removed):
        raise ValueError("removed: a name is listed twice")
    if again := sorted(names & nodes):
        raise ValueError(f"removed: {again[0]!r} is a member")
    if len(removed) > limits.removed_names_max:
        raise ValueError(f"removed: {len(removed)} names, at most {limits.removed_names_max}")


def validate_shard(shard: meta_pb2.Shard, nodes: Set[str], epoch: int) -> None:
    """The laws of one shard's row in a map of `epoch` whose members are `nodes`. ValueError."""
    if shard.version < 1:
        raise ValueError(f"shard {shard.id}: its version must be positive")
    if not shard.replicas:
        raise ValueError(f"shard {shard.id}: has no replica")
    if unknown := sorted({replica.node for replica in shard.replicas} - nodes):
        raise ValueError(f"shard {shard.id}: {unknown[0]!r} is not a member")
    ids = [replica.id for replica in shard.replicas]
    if len(set(ids)) < len(ids) or min(ids) < 1 or max(ids) >= shard.next_replica_id:
        raise ValueError(f"shard {shard.id}: replica ids must be distinct, positive and below {shard.next_replica_id}")
    for replica in shard.replicas:
        if replica.stage not in meta_pb2.Replica.Stage.values():
            raise ValueError(f"shard {shard.id}: replica {replica.id} is in stage {replica.stage}, which is none")
        if replica.epoch > epoch:
            raise ValueError(f"shard {shard.id}: replica {replica.id} is of epoch {replica.epoch}, above {epoch}")
    staying = [replica.node for replica in shard.replicas if replica.stage != LEAVING]
    if len(set(staying)) < len(staying):
        raise ValueError(f"shard {shard.id}: two replicas are on one node")
    stages = [replica.stage for replica in shard.replicas]
    if VOTER not in stages and not (LEARNER in stages and LEAVING in stages):
        raise ValueError(f"shard {shard.id}: has no voter")


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


def voters(shard: meta_pb2.Shard) -> list[meta_pb2.Replica]:
    """Those that are to vote and stay, the preferred leader first."""
    return [replica for replica in shard.replicas if replica.stage == VOTER]


def staying(shard: meta_pb2.Shard) -> list[meta_pb2.Replica]:
    """Those that hold the shard once the change under way, if any, is over."""
    return [replica for replica in shard.replicas if replica.stage != LEAVING]


def changing(shard: meta_pb2.Shard) -> bool:
    """Whether a change of the shard's replicas is under way; there is one at a time."""
    return any(replica.stage != VOTER for replica in shard.replicas)


def replica(shard: meta_pb2.Shard, number: int) -> meta_pb2.Replica | None:
    """The replica with that id; None where the map lists it no more."""
    return next((each for each in shard.replicas if each.id == number), None)


def shards_on(shard_map: meta_pb2.ShardMap, node: str) -> list[int]:
    """The shards with a replica on `node`, meta included, in order; [] for a node that holds none."""
    return [shard.id for shard in shard_map.shards if any(replica.node == node for replica in shard.replicas)]


def replica_on(shard_map: meta_pb2.ShardMap, number: int, node: str) -> int | None:
    """The id of the replica of shard `number` on `node`, the newest where one takes the other's place; None where there is none."""
    return max((each.id for each in shard(shard_map, number).replicas if each.node == node), default=None)


def member(shard_map: meta_pb2.ShardMap, node: str) -> meta_pb2.Member:
    """ValueError, listing the members, if `node` is not one."""
    for each in shard_map.members:
        if each.node == node:
            return each
    raise ValueError(f"node: {node!r} is not a member; the members are {', '.join(m.node for m in shard_map.members)}")
