"""When a run's faults are over: the wait until the cluster is whole, which is what its second phase demands."""

from __future__ import annotations

import asyncio
from typing import Protocol

from chaos.nemesis.steps import NeverHealed
from cluster.local.health import Goal, missing, moving, voting
from cluster.local.local_cluster import NodeStatus
from proto.gen import meta_pb2

POLL_S = 0.1


class Watched(Protocol):
    """What is looked at; `LocalCluster` is one."""

    async def status(self) -> list[NodeStatus]: ...

    async def shard_map(self) -> meta_pb2.ShardMap: ...


async def converged(cluster: Watched, timeout_s: float) -> None:
    """Returns when every node answers, no replica moves, every shard has a leader and every replica has applied what was
    committed. NeverHealed names what is missing."""
    lacking = "nothing was looked at"
    goals: dict[str, Goal] = {}
    epoch = 0
    try:
        async with asyncio.timeout(timeout_s):
            while lacking:
                shard_map = await cluster.shard_map()
                if shard_map.epoch != epoch:  # a goal speaks of what a node held
                    epoch, goals = shard_map.epoch, {}
                replies = {each.node: each.reply for each in await cluster.status() if each.reply is not None}
                under_way = moving(shard_map)
                lacking = missing(voting(shard_map), replies, goals)
                if not lacking and under_way:
                    lacking = f"shards {under_way} are moving"
                await asyncio.sleep(POLL_S if lacking else 0)
    except TimeoutError:
        raise NeverHealed(f"after {timeout_s:g} s {lacking}") from None
