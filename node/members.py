"""Watches the members while this node leads meta, and writes down who has become up, suspect or down.

Law: only the leader whose shard clock runs judges, and each of its leaderships begins with a detector that knows nothing
(cluster/membership). This node itself is always heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from cluster.errors import TenfoldError
from cluster.limits import Limits
from cluster.membership.detector import Detector
from cluster.membership.state import MemberState, state_of
from cluster.ports import Clock
from node.meta_leader import MetaLeader
from node.shards import Shards
from node.transport.peers import Peers
from proto.gen import meta_pb2, peer_pb2

log = structlog.get_logger("members")


class Members:
    """`told` holds the last heartbeat of each peer. `wake` is called when the driver may have something to do: a member's state has changed,
    or the number of somebody's quarantined replicas."""

    def __init__(
        self,
        *,
        meta: MetaLeader,
        peers: Peers,
        shards: Shards,
        told: dict[str, peer_pb2.NodeHeartbeat],
        wake: Callable[[], None],
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._meta = meta
        self._peers = peers
        self._shards = shards
        self._told = told
        self._wake = wake
        self._clock = clock
        self._limits = limits
        self._quarantined: dict[str, int] = {}

    async def run(self) -> None:
        """For ever."""
        detector, watched = Detector(self._limits), 0
        while True:
            term = self._meta.term
            if not term:
                await self._meta.changed()
                continue
            if term != watched:
                detector, watched = Detector(self._limits), term
            await self._look(detector)
            await asyncio.sleep(detector.look_s)

    async def _look(self, detector: Detector) -> None:
        known = self._meta.map
        if known is None:
            return
        now = self._clock.monotonic()
        states = {each.node: state_of(each) for each in known.members}
        for node in states:
            beat = self._told.get(node)
            if node == self._shards.node:
                detector.heard(node, now)
            elif beat is not None and not beat.lost:  # what is placed on one that is lost, would be lost with the rest
                detector.heard(node, self._peers.heard_s(node))
        for node, state in detector.look(now, states):
            await self._write(node, states[node], state)
        quarantined = {node: beat.quarantined for node, beat in self._told.items() if beat.quarantined}
        quarantined[self._shards.node] = len(self._shards.quarantined)
        if quarantined != self._quarantined:
            self._quarantined = quarantined
            self._wake()

    async def _write(self, node: str, old: MemberState, new: MemberState) -> None:
        command = meta_pb2.SetState(node=node, state=meta_pb2.Member.State.Value(new.name))
        try:
            await self._meta.propose(meta_pb2.MetaCommand(set_state=command))
        except TenfoldError as refusal:  # it is looked at again
            log.info("state not written", member=node, state=new.word, reason=refusal.message)
            return
        log.info("member", member=node, was=old.word, state=new.word)
        self._wake()
