"""The placement driver: on the node that leads meta, it begins moves, settles what the groups have reached, and ends.

Laws: it decides from the map and from what the nodes say at that moment (node/decisions.py) and keeps nothing that another driver
would need: one that dies leaves work that the next goes on with. It looks every `driver_ms` while something is unsettled, and asks
nobody while nothing is. A node that does not answer in time is just missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Clock, Dial
from cluster.ring.placement import Plan, Planner
from cluster.ring.shard_map import changing
from node.cluster_map import ClusterMap
from node.decisions import Answers, Decision, decide
from node.meta_leader import MetaLeader
from node.shards import Shards
from node.transport.peers import Peers
from proto.gen import meta_pb2, node_pb2, peer_pb2

QUIET_LOOKS = 4
"""After so many looks that led to nothing the next pauses are longer by one."""

MOVING_PAUSES_MAX = 4
"""A pause while replicas move is at most so many of the shortest."""

log = structlog.get_logger("driver")


class Driver:
    def __init__(
        self,
        *,
        meta: MetaLeader,
        map: ClusterMap,
        shards: Shards,
        peers: Peers,
        told: dict[str, peer_pb2.NodeHeartbeat],
        own_status: Callable[[], node_pb2.StatusReply],
        dial: Dial,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._meta = meta
        self._map = map
        self._shards = shards
        self._peers = peers
        self._told = told
        self._own_status = own_status
        self._dial = dial
        self._clock = clock
        self._limits = limits
        self._planner = Planner(virtual_nodes=limits.virtual_nodes)
        self._planned: tuple[object, Plan] | None = None
        self._quarantined: Collection[tuple[int, int]] = frozenset()  # as of the last look
        self._stuck = ""
        self._quiet_looks = 0
        self._woken = asyncio.Event()
        self._channels: dict[str, tuple[str, Channel]] = {}

    # -- what others may ask -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to do: look soon."""
        self._woken.set()

    def plan(self, shard_map: meta_pb2.ShardMap, *, rebalance: bool | None = None) -> Plan:
        """What is still to be done, with what was quarantined at the last look."""
        wanted = shard_map.rebalancing if rebalance is None else rebalance
        key = (shard_map.epoch, wanted, self._quarantined)
        if self._planned is None or self._planned[0] != key:
            self._planned = (key, self._planner.plan(shard_map, self._quarantined, rebalance=wanted))
        return self._planned[1]

    def stuck(self) -> str:
        """What held it up at the last look; "" for nothing."""
        return self._stuck

    # -- the work ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        pause_ms = self._limits.driver_ms
        try:
            while True:
                if not self._meta.term:
                    self._stuck = ""
                    await self._close_all_but(())
                    await self._meta.changed()
                    continue
                # First a pause, also for a new leader: its peers' heartbeats say who is quarantined.
                await self._rest(pause_ms)
                pause_ms = await self._look() if self._meta.term else self._limits.driver_ms
        finally:
            await self._close_all_but(())

    async def _rest(self, pause_ms: int) -> None:
        """Until the next look: at least `driver_ms`, then until it is woken, at most `pause_ms`."""
        soon_ms = self._limits.driver_ms
        await asyncio.sleep(soon_ms / 1000)
        if pause_ms > soon_ms:
            with suppress(TimeoutError):
                async with asyncio.timeout((pause_ms - soon_ms) / 1000):
                    await self._woken.wait()
        self._woken.clear()

    async def _look(self) -> int:
        """Milliseconds until the next."""
        known = self._meta.map
        if known is None or self._nothing_to_do(known):
            self._quarantined, self._stuck = frozenset(), ""
            return self._limits.driver_idle_ms
        replies = await self._ask(known)
        known = self._meta.map
        if known is None or not self._meta.term:
            return self._limits.driver_ms
        answers = Answers(known, replies)
        self._quarantined = frozenset(answers.quarantined)
        decision = decide(known, self.plan(known), answers, self._limits)
        self._stuck = decision.stuck
        await self._carry_out(decision)
        return self._pause_ms(decision)

    def _pause_ms(self, decision: Decision) -> int:
        """`driver_ms`, and longer the longer there is nothing to write: a large shard takes its time to be copied, and what waits for a
        node or a leader to come back needs no haste."""
        if decision.settled:
            return self._limits.driver_idle_ms
        self._quiet_looks = 0 if decision.commands else self._quiet_looks + 1
        longest_ms = MOVING_PAUSES_MAX * self._limits.driver_ms if decision.moving else self._limits.driver_idle_ms
        return min(self._limits.driver_ms * (1 + self._quiet_looks // QUIET_LOOKS), longest_ms)

    def _nothing_to_do(self, known: meta_pb2.ShardMap) -> bool:
        """As far as can be told without asking anybody."""
        return not (
            known.rebalancing
            or any(changing(shard) for shard in known.shards)
            or self._shards.quarantined
            or any(beat.quarantined for beat in self._told.values())
            or self.plan(known).moves
        )

    async def _carry_out(self, decision: Decision) -> None:
        for command in decision.commands:
            try:
                await self._meta.propose(command)
            except TenfoldError as refusal:
                if refusal.code is not Code.MAP_CHANGED:
                    log.info("not done", command=command.WhichOneof("command"), reason=refusal.message)
                if not self._meta.term:
                    return
            else:
                log.info("done", **_told(command))

    async def _ask(self, known: meta_pb2.ShardMap) -> list[node_pb2.StatusReply]:
        """The status of every member that was heard lately."""
        addresses = self._map.addresses()
        heard = self._clock.monotonic() - self._limits.suspect_after_ms / 1000
        asked = {
            each.node: addresses.get(each.node, each.address)
            for each in known.members
            if each.node != self._shards.node and self._peers.heard_s(each.node) >= heard
        }
        await self._close_all_but(asked)
        replies = await asyncio.gather(*(self._status(node, address) for node, address in asked.items()))
        return [self._own_status(), *(reply for reply in replies if reply is not None)]

    async def _status(self, node: str, address: str) -> node_pb2.StatusReply | None:
        held = self._channels.get(node)
        if held is None or held[0] != address:
            if held is not None:
                await held[1].close()
            held = self._channels[node] = (address, self._dial(address))
        timeout_s = self._limits.peer_hello_ms / 1000
        try:
            reply = await held[1].call("Node", "Status", node_pb2.StatusRequest(), timeout_s=timeout_s)
        except (ChannelBroken, TenfoldError, TimeoutError):
            return None
        assert isinstance(reply, node_pb2.StatusReply)
        return reply if reply.node == node else None  # another node may have come to that address

    async def _close_all_but(self, nodes: Collection[str]) -> None:
        for node in [node for node in self._channels if node not in nodes]:
            _, channel = self._channels.pop(node)
            await channel.close()


def _told(command: meta_pb2.MetaCommand) -> dict[str, object]:
    """A command in a line of the node's log."""
    which = command.WhichOneof("command")
    assert which is not None
    inner = getattr(command, which)
    fields = {field.name: value for field, value in inner.ListFields()}
    return {
        "command": which,
        **{name: value if isinstance(value, int | str) else list(value) for name, value in fields.items()},
    }
