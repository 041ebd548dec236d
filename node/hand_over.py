"""Hands over what a node leads before it stops: to the follower that has most, again when that fails, until nothing is led here.

Meanwhile the node answers as before, and tells where the leader is; its heartbeats say that it is stopping, so that nobody hands
anything back. What nobody can take is left to an election.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set

from cluster.limits import Limits
from cluster.ports import Clock
from cluster.types import Role
from node.peer_events import PeerEvents
from node.replica import Replica
from node.shards import Shards
from node.transport.peers import Peers

GRACE_S = 2.0
LINGER_S = 0.2
"""Callers that are on their way here learn where the leader is, instead of finding a closed door."""


async def hand_over(shards: Shards, peers: Peers, events: PeerEvents, clock: Clock, limits: Limits) -> None:
    """Returns when nothing is led here any more, nobody is left to take it, or `GRACE_S` are over."""
    deadline = clock.monotonic() + GRACE_S
    handed = False
    while clock.monotonic() < deadline:
        up = {node for node in peers.up() if not events.stopping(node)}
        led = shards.led()
        if not [replica for replica in led if _hand_on(replica, up)]:
            break
        handed = True
        await asyncio.sleep(limits.tick_ms / 1000)
    if handed:
        await asyncio.sleep(LINGER_S)


def _hand_on(replica: Replica, up: Set[str]) -> bool:
    """Whether it is on its way to another replica."""
    core = replica.core
    if core.role is not Role.LEADER:  # deposed a moment ago, and its next step will say so
        return False
    if core.transferring:
        return True
    takers = [each for each in core.configuration.voters if each != core.replica and replica.node_of.get(each) in up]
    if not takers:
        return False
    core.transfer_leadership(max(takers, key=lambda each: core.progress[each].match))
    replica.touch()
    return True
