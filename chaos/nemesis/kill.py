"""The nemesis that kills: SIGKILL to nodes that hold leaders or anything else, and a restart a moment later.

Laws: never more than a minority of any replica set is down, where a node counts as down until it has caught up again; every
fault is on file before it is injected; `heal` starts whatever this nemesis killed, and callers run it in a `finally`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from chaos.history import Recorder
from chaos.nemesis.schedule import PlannedKill, ReplicaSets, choose
from chaos.nemesis.steps import NeverHealed, Steps
from cluster.local.ask import leaders as leaders_of
from cluster.local.health import Goal, goal_of, quarantined, voting
from cluster.local.launcher import Condition
from cluster.local.local_cluster import NodeStatus
from proto.gen import meta_pb2, node_pb2

POLL_S = 0.1
LOOK_S = 0.3
RECOVERY_TIMEOUT_S = 60.0


class Victims(Protocol):
    """What the nemesis needs of a cluster; `LocalCluster` is one."""

    async def kill(self, *nodes: str) -> None: ...

    async def restart(self, *nodes: str) -> list[str]: ...

    async def status(self) -> list[NodeStatus]: ...

    async def shard_map(self) -> meta_pb2.ShardMap: ...


class KillNemesis:
    """One per run. `run` until the time is over, then `heal`."""

    def __init__(self, cluster: Victims, recorder: Recorder, told: Callable[[str], None] = lambda line: None) -> None:
        """`told` takes one line for each fault, for a human."""
        self._cluster = cluster
        self._recorder = recorder
        self._told = told
        self._steps = Steps(recorder, told)
        self._replica_sets: ReplicaSets = {}
        self._down: set[str] = set()
        self._killed: set[str] = set()
        self._recoveries: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self.kills = 0

    @property
    def so_far(self) -> str:
        return f"{self.kills} kills"

    async def start(self) -> None:
        """Learns who holds what. A node that does not answer now counts as down, and is left as it is."""
        self._replica_sets = voting(await self._cluster.shard_map())
        self._down = {each.node for each in await self._cluster.status() if each.reply is None}

    async def run(self, plans: Iterable[PlannedKill], duration_s: float) -> None:
        """Carries the plans out for `duration_s` seconds. NeverHealed if a node does not recover."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for planned in plans:
            await asyncio.sleep(max(0.0, start + planned.at_s - loop.time()))
            node = await self._next_victim(planned, start + duration_s)
            if node is None:
                break
            await self.strike(node)
            self.recover(node, planned.down_s)
        while (left := start + duration_s - loop.time()) > 0:
            self._collect()
            await self._wait_for_change(left)
        self._collect()

    async def _next_victim(self, planned: PlannedKill, until: float) -> str | None:
        """Waits until somebody may be killed; None when the time is over."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            self._collect()
            replies = await self._replies()
            silent = {node for nodes in self._replica_sets.values() for node in nodes} - replies.keys()
            leaders = leaders_of(replies.values())
            if (node := choose(planned, self._replica_sets, leaders, self._down | silent)) is not None:
                return node
            await self._wait_for_change(min(LOOK_S, until - loop.time()))
        return None

    def _collect(self) -> None:
        """Forgets the recoveries that are over, and raises what one of them raised. What ends after this wakes the next wait."""
        self._changed.clear()
        for node in [node for node, task in self._recoveries.items() if task.done()]:
            self._recoveries.pop(node).result()

    async def _wait_for_change(self, timeout_s: float) -> None:
        """Returns when a recovery ended since the last `_collect`, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._changed.wait()

    async def strike(self, node: str) -> None:
        """SIGKILL to `node`; returns when its process is gone."""
        led = sorted(shard for shard, leader in leaders_of((await self._replies()).values()).items() if leader == node)
        self._down.add(node)
        self._killed.add(node)
        note = f"leads {led}" if led else "leads nothing"
        await self._steps.take("kill", node, self._cluster.kill(node), note=note)
        self.kills += 1

    def recover(self, node: str, down_s: float) -> asyncio.Task[None]:
        """Starts `node` again after `down_s` seconds; the task ends when it counts again."""
        task = asyncio.create_task(self._recover(node, down_s), name=f"recovery of {node}")
        task.add_done_callback(lambda _: self._changed.set())
        self._recoveries[node] = task
        return task

    async def _recover(self, node: str, down_s: float) -> None:
        await asyncio.sleep(down_s)
        await self._steps.take("restart", node, self._cluster.restart(node))
        await self._caught_up(node)
        self._recorder.fault("ok", "recovered", node=node)
        self._told(f"{node} has caught up")
        self._killed.discard(node)
        self._down.discard(node)

    async def _caught_up(self, node: str) -> None:
        held = {shard for shard, nodes in self._replica_sets.items() if node in nodes}
        goal: Goal | None = None
        try:
            async with asyncio.timeout(RECOVERY_TIMEOUT_S):
                while True:
                    replies = await self._replies()
                    goal = goal or goal_of(node, held, replies, leaders_of(replies.values()))
                    if goal is not None and goal.reached(replies.get(node)):
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            bad = quarantined(await self._replies())
            told = f" ({'; '.join(bad)})" if bad else ""
            raise NeverHealed(f"{node} did not catch up within {RECOVERY_TIMEOUT_S:g} s of its restart{told}") from None

    async def _replies(self) -> dict[str, node_pb2.StatusReply]:
        """Of the nodes that answer. NeverHealed if one ended that nobody killed."""
        statuses = await self._cluster.status()
        for each in statuses:
            if each.condition is Condition.DOWN and each.node not in self._down:
                raise NeverHealed(f"{each.node} ended, and not by the nemesis; its log says why")
        return {each.node: each.reply for each in statuses if each.reply is not None}

    async def settle(self) -> None:
        """Waits until every node that is on its way back has caught up. NeverHealed."""
        await asyncio.gather(*self._recoveries.values())
        self._recoveries.clear()

    async def heal(self) -> None:
        """Starts every node this nemesis killed and that is not back, and waits for none of them to catch up."""
        tasks = list(self._recoveries.values())
        self._recoveries.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        failures = []
        for node in sorted(self._killed):
            try:
                await self._steps.take("restart", node, self._cluster.restart(node), note="healing")
                self._killed.discard(node)
            except NeverHealed as error:
                failures.append(str(error))
        if failures:
            raise NeverHealed("; ".join(failures))
