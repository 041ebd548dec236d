"""The nemesis that is none: every node is restarted, one after the other and cleanly, and no client may notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from chaos.checkers.availability import ROLL
from chaos.history import Recorder
from chaos.nemesis.steps import Steps
from cluster.local.rolling import Restarted

STEP_S = 120.0


class Restartable(Protocol):
    """`LocalCluster` is one."""

    @property
    def nodes(self) -> list[str]: ...

    async def rolling_restart(self, *nodes: str) -> Restarted: ...


class RollingNemesis:
    def __init__(
        self, cluster: Restartable, recorder: Recorder, told: Callable[[str], None] = lambda line: None
    ) -> None:
        self._cluster = cluster
        self._told = told
        self._steps = Steps(recorder, told)
        self.rounds = 0

    @property
    def so_far(self) -> str:
        return f"{self.rounds} rounds"

    async def run(self, duration_s: float, rounds: int = 0) -> None:
        """So many rounds over all nodes; without a number as many as begin before the time is over, at least one. NeverHealed."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + duration_s
        while self.rounds < rounds if rounds else not self.rounds or loop.time() < ends:
            for node in self._cluster.nodes:
                work = self._cluster.rolling_restart(node)
                done = await self._steps.take(ROLL, node, work, within_s=STEP_S)
                if done.killed:
                    self._told(f"{node} did not stop in time and was killed")
            self.rounds += 1
            self._told(f"every node was restarted, {self.rounds} times so far")

    async def heal(self) -> None:
        """A node that was stopped was started again by whoever stopped it."""
