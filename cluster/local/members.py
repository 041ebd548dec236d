"""Nodes that come and go, and replicas that move: the launcher's part and the cluster's part of each put together.

Laws: a node gets a folder before the cluster hears of it, and loses it only when the cluster has let it go, so an interruption leaves
nothing that doing it again does not mend; the moves are the cluster's own business and go on when nobody waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from cluster.errors import Code, TenfoldError
from cluster.local.admin import Admin
from cluster.local.ask import Asker
from cluster.local.launcher import Launcher, names, until
from cluster.ring.shard_map import first_map, shards_on
from proto.gen import meta_pb2, node_pb2

JOIN_TIMEOUT_S = 60.0
STUCK_S = 30.0
POLL_S = 0.25

Progress = Callable[[int, int, str], None]
"""Takes how many replicas of how many have moved, and what is under way."""


class _Left(NamedTuple):
    """Of something that is waited for. `idle`: nothing moves now."""

    replicas: int
    what: str
    idle: bool
    stuck: str


class Members:
    def __init__(self, launcher: Launcher, asker: Asker) -> None:
        self._launcher = launcher
        self._asker = asker
        self._admin = Admin(asker, launcher.running_addresses)

    async def shard_map(self) -> meta_pb2.ShardMap:
        """The newest map a running node knows; the one the cluster was born with if none answers."""
        told = await self._asker.shard_maps(self._launcher.running_addresses())
        if told:
            return max(told, key=lambda each: each.epoch)
        cluster = self._launcher.cluster
        members = [(entry.node, entry.address, entry.zone) for entry in cluster.birth]
        return first_map(bytes.fromhex(cluster.cluster_id), members, cluster.shards, cluster.replication_factor)

    async def add(self, count: int, zones: Sequence[str], timeout_s: float = JOIN_TIMEOUT_S) -> list[str]:
        """Starts so many new nodes; their names, once they are members."""
        added = await self._launcher.enlist(count, zones)
        await self._launcher.start(added)

        async def joined() -> bool:
            states = {member.node: member.state for member in (await self.shard_map()).members}
            return all(states.get(node, meta_pb2.Member.JOINING) != meta_pb2.Member.JOINING for node in added)

        late = f"{', '.join(added)} did not join within {timeout_s:g} s; they go on trying, `tenfold status` shows"
        await until(joined, timeout_s, late, POLL_S)
        return added

    async def drain(self, node: str, progress: Progress | None = None) -> int:
        """Lets the cluster move every replica away from `node`; how many there were. Returns when it holds none."""
        names(self._launcher.cluster, [node])
        held = len(shards_on(await self.shard_map(), node))
        await self._admin.ask("Drain", node_pb2.DrainRequest(node=node))

        async def left() -> _Left:
            status = await self.driver_status()
            count = len(shards_on(await self.shard_map(), node))
            return _Left(count, _told(status.moving), not status.moving, status.stuck)

        await self._until_none(left, held, progress)
        return held

    async def remove(self, node: str) -> None:
        """Takes `node` out of the cluster, stops it and removes its folder. MemberBusy while it holds replicas."""
        launcher = self._launcher
        if not any(each.node == node for each in launcher.cluster.removed):
            names(launcher.cluster, [node])
            try:
                await self._admin.ask("Remove", node_pb2.RemoveRequest(node=node))
            except TenfoldError as error:
                if error.code is not Code.INVALID_ARGUMENT or await self._is_member(node):
                    raise
                await launcher.stop([node])  # it never joined, and now it cannot
                if await self._is_member(node):
                    await self._admin.ask("Remove", node_pb2.RemoveRequest(node=node))
        await launcher.dismiss(node)

    async def _is_member(self, node: str) -> bool:
        """By the newest map that a node of the cluster tells, once the meta leader has answered."""
        await self.driver_status()
        return node in {member.node for member in (await self.shard_map()).members}

    async def planned(self) -> node_pb2.RebalanceReply:
        """The moves that a rebalance would make now."""
        reply: node_pb2.RebalanceReply = await self._admin.ask("Rebalance", node_pb2.RebalanceRequest(dry_run=True))
        return reply

    async def rebalance(self, progress: Progress | None = None) -> node_pb2.RebalanceReply:
        """Lets the cluster bring every replica where it should be; returns when it is done, with the moves it set out to make."""
        reply: node_pb2.RebalanceReply = await self._admin.ask("Rebalance", node_pb2.RebalanceRequest())

        async def left() -> _Left:
            status = await self.driver_status()
            count = len(status.moving) + len(status.waiting)
            return _Left(max(count, int(status.rebalancing)), _told(status.moving), not status.moving, status.stuck)

        await self._until_none(left, len(reply.moves), progress)
        return reply

    async def driver_status(self, timeout_s: float = 30.0) -> node_pb2.DriverStatusReply:
        """What moves, as the meta leader tells. DeadlineExceeded if there is none."""
        reply: node_pb2.DriverStatusReply = await self._admin.ask(
            "DriverStatus", node_pb2.DriverStatusRequest(), timeout_s
        )
        return reply

    async def _until_none(self, look: Callable[[], Awaitable[_Left]], total: int, progress: Progress | None) -> None:
        """Returns when nothing is left. TenfoldError Unavailable if nothing has moved or finished for STUCK_S seconds."""
        loop = asyncio.get_running_loop()
        fewest, since = total, loop.time()
        while True:
            left = await look()
            total = max(total, left.replicas)  # more may turn out to be needed on the way
            if progress is not None:
                progress(total - left.replicas, total, left.what or left.stuck)
            if not left.replicas:
                return
            if left.replicas < fewest or not left.idle:
                fewest, since = left.replicas, loop.time()
            elif loop.time() - since > STUCK_S:
                why = left.stuck or "nothing moves"
                raise TenfoldError(Code.UNAVAILABLE, f"{left.replicas} of {total} replicas are left to move: {why}")
            await asyncio.sleep(POLL_S)


def _told(moves: Sequence[node_pb2.Move]) -> str:
    """In a few words: shard, from, to."""
    return ", ".join(move_text(move) for move in moves)


def move_text(move: node_pb2.Move) -> str:
    where = f"{getattr(move, 'from') or 'new'} -> {move.to or 'none'}"
    return f"{'meta' if not move.shard else f'shard {move.shard}'} {where}"
