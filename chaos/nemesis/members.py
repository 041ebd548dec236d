"""The nemesis of members: nodes join, one dies for good and is repaired without it, another is drained, and both leave.

Laws: the cluster itself does all moving; here it is only asked, waited for and given time. A node that dies for good loses its
folder with it. At the end of a round there are as many nodes as at its start, and every shard is whole.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from chaos.history import Recorder
from chaos.nemesis.steps import Steps
from cluster.errors import TenfoldError
from cluster.local.health import moving, voting
from proto.gen import meta_pb2, node_pb2

ADDED = 2
STEP_S = 120.0
POLL_S = 0.25


class Growing(Protocol):
    """What the nemesis needs of a cluster; `LocalCluster` is one."""

    @property
    def nodes(self) -> list[str]: ...

    async def shard_map(self) -> meta_pb2.ShardMap: ...

    async def add(self, count: int = 1) -> list[str]: ...

    async def rebalance(self) -> node_pb2.RebalanceReply: ...

    async def destroy(self, node: str) -> None: ...

    async def drain(self, node: str) -> int: ...

    async def remove(self, node: str) -> None: ...


class MembersNemesis:
    """`keep_log` saves what a node wrote before its folder goes."""

    def __init__(
        self,
        cluster: Growing,
        recorder: Recorder,
        seed: int,
        told: Callable[[str], None] = lambda line: None,
        keep_log: Callable[[str], None] = lambda node: None,
    ) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._told = told
        self._keep_log = keep_log
        self._steps = Steps(recorder, told)
        self._chance = random.Random(f"members/{seed}")
        self.moved = 0
        self.kills = 0

    @property
    def so_far(self) -> str:
        return f"{self.moved} replicas moved, {self.kills} nodes killed for good"

    async def run(self, duration_s: float, rounds: int = 0) -> None:
        """So many rounds; without a number as many as begin before the time is over, at least one. NeverHealed."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + duration_s
        done = 0
        while done < rounds if rounds else not done or loop.time() < ends:
            await self.round()
            done += 1

    async def round(self) -> None:
        """Two nodes join and get their share; one is killed for good, repaired without it and taken out; another is drained and
        taken out."""
        factor = (await self._cluster.shard_map()).replication_factor
        added = await self._steps.take("add", f"{ADDED} nodes", self._cluster.add(ADDED), within_s=STEP_S)
        moves = await self._steps.take("rebalance", ", ".join(added), self._cluster.rebalance(), within_s=STEP_S)
        self.moved += len(moves.moves)
        dead, *others = self._chance.sample(self._cluster.nodes, len(self._cluster.nodes))
        self._keep_log(dead)
        await self._steps.take("kill", dead, self._cluster.destroy(dead), note="for good")
        self.kills += 1
        await self._steps.take("repair", dead, self._repaired(dead, factor), within_s=STEP_S)
        await self._steps.take("remove", dead, self._cluster.remove(dead), within_s=STEP_S)
        leaving = others[0]
        self.moved += await self._steps.take("drain", leaving, self._cluster.drain(leaving), within_s=STEP_S)
        self._keep_log(leaving)
        await self._steps.take("remove", leaving, self._cluster.remove(leaving), within_s=STEP_S)

    async def _repaired(self, dead: str, factor: int) -> None:
        """Returns when nothing is on `dead` any more, nothing moves, and every shard has its replicas."""
        while True:
            try:
                shard_map = await self._cluster.shard_map()
                holders = voting(shard_map)
                whole = all(len(nodes) >= min(factor, 3) for nodes in holders.values())
                gone = all(dead != replica.node for shard in shard_map.shards for replica in shard.replicas)
                if gone and whole and not moving(shard_map):
                    return
            except TenfoldError as error:  # a moment without anyone to ask
                self._told(error.message)
            await asyncio.sleep(POLL_S)

    async def heal(self) -> None:
        """Who was killed was killed for good, and the cluster repairs itself: there is nothing to undo."""
