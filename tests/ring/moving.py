"""A map whose moves are carried out as the driver and a shard's group would, one row at a time, with the real changes of a row."""

from __future__ import annotations

from collections import Counter

from cluster.ring import shard_change
from cluster.ring.placement import Move
from cluster.ring.shard_map import LEAVING, first_map, validate
from proto.gen.meta_pb2 import AddReplica, Member, Replica, RetireReplica, SettleShard, Shard, ShardMap

CLUSTER = bytes(range(16))


def born(nodes: int, shards: int = 12, replicas: int = 3, zones: int = 0) -> ShardMap:
    names = range(1, nodes + 1)
    members = [(f"n{i}", f"127.0.0.1:{7000 + i}", f"z{i % zones}" if zones else "") for i in names]
    return first_map(CLUSTER, members, shards, replicas)


def join(shard_map: ShardMap, zone: str = "") -> str:
    node = f"n{len(shard_map.members) + 1}"
    shard_map.members.add(node=node, address=f"{node}:1", zone=zone)
    return node


def become(shard_map: ShardMap, node: str, state: Member.State.ValueType) -> None:
    next(each for each in shard_map.members if each.node == node).state = state


def begin(shard_map: ShardMap, move: Move) -> None:
    shard = shard_map.shards[move.shard]
    shard_map.epoch += 1
    if move.to:
        command = AddReplica(shard=shard.id, version=shard.version, node=move.to, replaces=move.replaces)
        shard_change.add(shard, command, shard_map.epoch)
    else:
        command_ = RetireReplica(shard=shard.id, version=shard.version, replica=move.replaces)
        assert shard_change.retire(shard, command_)
    shard.version += 1
    validate(shard_map)


def finish(shard_map: ShardMap, shard: Shard) -> None:
    """The group has reached what the row wants."""
    staying = [replica.id for replica in shard.replicas if replica.stage != LEAVING]
    shard_map.epoch += 1
    assert shard_change.settle(shard, SettleShard(shard=shard.id, version=shard.version, voters=staying))
    shard.version += 1
    validate(shard_map)


def carry_out(shard_map: ShardMap, moves: list[Move]) -> None:
    for move in moves:
        begin(shard_map, move)
        finish(shard_map, shard_map.shards[move.shard])


def placed(shard_map: ShardMap) -> list[set[str]]:
    return [{replica.node for replica in shard.replicas} for shard in shard_map.shards]


def loads(shard_map: ShardMap) -> Counter[str]:
    """Replicas of data shards, of those who may hold one."""
    counted = Counter({each.node: 0 for each in shard_map.members if each.state in (Member.UP, Member.SUSPECT)})
    counted.update(replica.node for shard in shard_map.shards[1:] for replica in _staying(shard))
    return counted


def leads(shard_map: ShardMap) -> Counter[str]:
    counted = Counter({each.node: 0 for each in shard_map.members})
    counted.update(shard.replicas[0].node for shard in shard_map.shards[1:])
    return counted


def _staying(shard: Shard) -> list[Replica]:
    return [replica for replica in shard.replicas if replica.stage != LEAVING]
