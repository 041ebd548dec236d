"""The nemesis that kills and pauses: every other node it strikes is stopped (SIGSTOP) for longer than leases last, and goes on.

A paused node keeps its connections and what it believed. The laws are those of `kill.py`: it counts as down until it has caught up,
and `heal` leaves none stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from chaos.history import Recorder
from chaos.nemesis.kill import KillNemesis, Victims

PAUSE_S = 2.5
"""Longer than an election takes and most leases last."""


class Pausable(Victims, Protocol):
    """`LocalCluster` is one."""

    async def pause(self, *nodes: str) -> None: ...

    async def resume(self, *nodes: str) -> list[str]: ...


class PauseNemesis(KillNemesis):
    def __init__(self, cluster: Pausable, recorder: Recorder, told: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(cluster, recorder, told)
        self._pausable = cluster
        self._paused: set[str] = set()
        self.pauses = 0

    @property
    def so_far(self) -> str:
        return f"{self.kills} kills, {self.pauses} pauses"

    async def strike(self, node: str) -> None:
        if self.kills <= self.pauses:
            await super().strike(node)
            return
        self._down.add(node)
        self._paused.add(node)
        await self._steps.take("pause", node, self._pausable.pause(node))
        self.pauses += 1

    async def _recover(self, node: str, down_s: float) -> None:
        if node not in self._paused:
            await super()._recover(node, down_s)
            return
        await asyncio.sleep(PAUSE_S + down_s)
        await self._steps.take("resume", node, self._pausable.resume(node))
        self._paused.discard(node)
        await self._caught_up(node)
        self._recorder.fault("ok", "recovered", node=node)
        self._down.discard(node)

    async def heal(self) -> None:
        try:
            await super().heal()
        finally:
            for node in sorted(self._paused):
                await self._steps.take("resume", node, self._pausable.resume(node), note="healing")
                self._paused.discard(node)
