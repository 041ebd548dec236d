"""Every node stopped and started, one after the other, while the cluster serves.

The law: the next node is stopped only when all is whole: every node answers, every shard has a leader, and every voter has applied what
was committed when that was first seen. So at no time is more than one node away, and none that is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from cluster.errors import Code, TenfoldError
from cluster.local.health import Goal, missing, voting
from cluster.local.launcher import Launcher, until
from proto.gen import meta_pb2, node_pb2

WHOLE_TIMEOUT_S = 60.0
POLL_S = 0.1

Tell = Callable[[str], None]
Statuses = Callable[[], Awaitable[dict[str, node_pb2.StatusReply]]]
MapNow = Callable[[], Awaitable[meta_pb2.ShardMap]]


class Restarted(NamedTuple):
    nodes: list[str]
    killed: list[str]
    """Those that did not stop in time."""


class RollingRestart:
    """`statuses` are the replies of the nodes that answer."""

    def __init__(self, launcher: Launcher, statuses: Statuses, shard_map: MapNow, tell: Tell) -> None:
        self._launcher, self._statuses, self._shard_map, self._tell = launcher, statuses, shard_map, tell

    async def run(self, nodes: Sequence[str], timeout_s: float = WHOLE_TIMEOUT_S) -> Restarted:
        """TenfoldError Unavailable, and nothing is stopped any more, if the cluster is not whole within `timeout_s` seconds before or
        after a node."""
        done = Restarted([], [])
        await self._whole(timeout_s, f"{nodes[0]} was not stopped")
        for position, node in enumerate(nodes):
            done.killed.extend(await self._restart(node))
            done.nodes.append(node)
            left = ", ".join(nodes[position + 1 :])
            await self._whole(timeout_s, f"{node} was restarted" + (f", {left} were not" if left else ""))
            self._tell(f"{node} is back and has caught up, {position + 1} of {len(nodes)}")
        return done

    async def _restart(self, node: str) -> list[str]:
        try:
            killed = await self._launcher.stop([node])
            await self._launcher.start([node])
        except asyncio.CancelledError:  # who is interrupted leaves no node down
            await self._launcher.stop([node])
            await self._launcher.start([node])
            raise
        return killed

    async def _whole(self, timeout_s: float, so_far: str) -> None:
        goals: dict[str, Goal] = {}
        lacking = ""

        async def whole() -> bool:
            nonlocal lacking
            lacking = missing(voting(await self._shard_map()), await self._statuses(), goals)
            return not lacking

        try:
            await until(whole, timeout_s, "", POLL_S)
        except TenfoldError:
            raise TenfoldError(Code.UNAVAILABLE, f"after {timeout_s:g} s {lacking}; {so_far}") from None
