"""Changes of the membership and of the placement, for people and for nodes that join.

Law: asked of any node, done by the one that leads meta; the others say where that is, if they know it. What is asked here may be asked
again: each request says what is to be true.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.errors import Code, TenfoldError
from cluster.membership.state import MemberState, state_of
from cluster.ring.placement import Move, under_way
from cluster.ring.shard_map import shards_on, staying
from node.driver import Driver
from node.meta_leader import MetaLeader
from proto.gen import meta_pb2, node_pb2


class AdminService:
    """The part of the `Node` service that concerns the whole cluster. Errors: NOT_LEADER with the leader's address in `leader`;
    what the meta machine refuses; UNKNOWN_OUTCOME when leadership was lost meanwhile."""

    def __init__(self, meta: MetaLeader, driver: Driver) -> None:
        self._meta = meta
        self._driver = driver

    async def join(self, request: node_pb2.JoinRequest) -> node_pb2.JoinReply:
        """A new member, or one that moved or lost its disk."""
        known = self._meta.led_map()
        if request.cluster_id and request.cluster_id != known.cluster_id:
            raise TenfoldError(Code.WRONG_CLUSTER)
        join = meta_pb2.JoinMember(member=request.member, lost=request.lost)
        result = await self._write(meta_pb2.MetaCommand(join=join))
        return node_pb2.JoinReply(map=self._meta.led_map(), epoch=result.epoch)

    async def drain(self, request: node_pb2.DrainRequest) -> node_pb2.AdminReply:
        """Its replicas move away; it stays a member until it is removed."""
        self._meta.led_map()
        return await self._leave(request.node)

    async def remove(self, request: node_pb2.RemoveRequest) -> node_pb2.AdminReply:
        """Of a member that holds nothing. MEMBER_BUSY for one that does; one that is down is made to leave by that, so that its replicas
        are rebuilt elsewhere and asking again succeeds."""
        known = self._meta.led_map()
        node = request.node
        held = len(shards_on(known, node))
        if held:
            state = next(state_of(each) for each in known.members if each.node == node)
            if state is MemberState.DOWN:
                await self._leave(node)
            if state in (MemberState.DOWN, MemberState.LEAVING):
                raise TenfoldError(
                    Code.MEMBER_BUSY,
                    f"{node} is {state.word}: {held} replicas of it are on their way to others; ask again",
                )
            raise TenfoldError(Code.MEMBER_BUSY, f"{node} is {state.word} and holds {held} replicas; drain it first")
        result = await self._write(meta_pb2.MetaCommand(remove_member=node))
        return node_pb2.AdminReply(epoch=result.epoch)

    async def rebalance(self, request: node_pb2.RebalanceRequest) -> node_pb2.RebalanceReply:
        """The moves that even the loads; they begin unless it is a dry run."""
        known = self._meta.led_map()
        plan = self._driver.plan(known, rebalance=True)
        replicas = sum(len(staying(shard)) for shard in known.shards)
        reply = node_pb2.RebalanceReply(moves=_moves(plan.moves), replicas=replicas)
        if not request.dry_run and (plan.moves or plan.orders):
            await self._write(meta_pb2.MetaCommand(set_rebalancing=meta_pb2.SetRebalancing(on=True)))
        return reply

    async def driver_status(self, request: node_pb2.DriverStatusRequest) -> node_pb2.DriverStatusReply:
        known = self._meta.led_map()
        plan = self._driver.plan(known)
        return node_pb2.DriverStatusReply(
            epoch=known.epoch,
            moving=_moves(under_way(known)),
            waiting=_moves(plan.moves),
            rebalancing=known.rebalancing,
            stuck=self._driver.stuck() or plan.stuck,
        )

    async def _leave(self, node: str) -> node_pb2.AdminReply:
        leaving = meta_pb2.SetState(node=node, state=meta_pb2.Member.LEAVING)
        result = await self._write(meta_pb2.MetaCommand(set_state=leaving))
        return node_pb2.AdminReply(epoch=result.epoch)

    async def _write(self, command: meta_pb2.MetaCommand) -> meta_pb2.MetaResult:
        try:
            return await self._meta.propose(command)
        finally:
            self._driver.wake()


def _moves(moves: Iterable[Move]) -> list[node_pb2.Move]:
    told = []
    for move in moves:
        each = node_pb2.Move(shard=move.shard, to=move.to, why=move.why)
        setattr(each, "from", move.source)  # a word of the language
        told.append(each)
    return told
