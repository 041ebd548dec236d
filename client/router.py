"""Which node to ask: the shard map, and the leader of each shard as far as it is known.

A leader is a guess: the first voter of the map, then what NotLeader replies say, and after a failure the next replica of the list.
The map may lag behind the shard's Raft group, so a hint is followed to any member, and one the map does not explain makes it be
fetched. A node that just failed is passed over for a while, so that the hints of followers who have not noticed yet do not lead
back to it: briefly if its connection broke, which costs little to find out again, longer if it hangs.
"""

from __future__ import annotations

from collections.abc import Callable

from client.map_follower import MapFollower
from client.placement import Placement
from client.tasks import Monotonic, Tasks
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Dial, Random
from cluster.ring import ring

BROKEN_S = 0.1
HANGING_S = 1.0


class Router:
    """One per client. Methods but `start` and `close` never wait. `on_moved`, if set, is told the shards whose replicas a newer
    map changed."""

    def __init__(
        self, addresses: list[str], dial: Dial, tasks: Tasks, clock: Monotonic, random: Random, limits: Limits
    ) -> None:
        assert addresses, "the client checks what it is given"
        self._dial, self._tasks, self._clock, self._random = dial, tasks, clock, random
        self._channels: dict[str, Channel] = {}
        self._leaders: dict[int, str] = {}
        self._down_until: dict[str, float] = {}
        self._map = MapFollower(list(addresses), self._channel_to, self._installed, tasks, clock, random, limits)
        self.on_moved: Callable[[frozenset[int]], None] | None = None
        self.cluster_id = b""
        self.epoch = 0
        self.shards = 0

    async def start(self, timeout_s: float) -> None:
        """Returns when a map is known. UNREACHABLE, DEADLINE_PASSED as `MapFollower.start` says."""
        await self._map.start(timeout_s)

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    # -- the map -------------------------------------------------------------------------------------------------------

    @property
    def _placement(self) -> Placement:
        placement = self._map.placement
        assert placement is not None, "nothing is asked for before the first map"
        return placement

    def shard_of(self, key: bytes) -> int:
        return ring.shard_of(key, self.shards)

    def version(self, shard: int) -> int:
        return self._placement.versions[shard]

    def map_is_wrong(self, node: str) -> None:
        """`node` says so: its map is asked for."""
        self._map.fetch(node)

    def answered(self, node: str, epoch: int) -> None:
        """`node` knows the map of this epoch."""
        if epoch > self.epoch:
            self._map.hinted(node)

    def _installed(self, before: Placement | None, now: Placement) -> None:
        self.cluster_id, self.epoch, self.shards = now.cluster_id, now.epoch, now.shards
        if before is None:
            return
        moved = now.moved(before)
        for shard in [shard for shard in moved if shard in self._leaders]:
            leader = self._leaders[shard]
            # A leader that neither map lists was named by a hint, which may know more than this map.
            if leader not in now.addresses or leader in before.holders[shard] - now.holders[shard]:
                del self._leaders[shard]
        self._down_until = {node: until for node, until in self._down_until.items() if node in now.addresses}
        self._close_left(set(before.addresses.values()) - set(now.addresses.values()))
        if moved and self.on_moved is not None:
            self.on_moved(moved)

    def _close_left(self, addresses: set[str]) -> None:
        """Nobody of this cluster listens there any more."""
        for address in sorted(addresses):
            if (channel := self._channels.pop(address, None)) is not None:
                self._tasks(channel.close(), f"close {address}")

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def channel(self, node: str) -> Channel:
        """ChannelBroken if the node has left meanwhile."""
        address = self._placement.addresses.get(node)
        if address is None:
            raise ChannelBroken(f"{node} has left the cluster", sent=False)
        return self._channel_to(address)

    def _channel_to(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._dial(address)
        return channel

    def leader(self, shard: int) -> str:
        """The node thought to lead `shard`."""
        return self._leaders.get(shard) or self._placement.asked[shard][0]

    def any_replica(self, shard: int, but: str = "") -> str:
        """A node for a stale read: any voter that did not just fail, `but` only if there is no other; else one that leaves."""
        placement = self._placement
        fit = [node for node in placement.voters[shard] if not self._is_down(node)]
        others = [node for node in fit if node != but] or [node for node in placement.asked[shard] if node != but]
        chosen = others or placement.asked[shard]
        return chosen[self._random.randrange(0, len(chosen))]

    def not_leader(self, shard: int, node: str, hint: str) -> bool:
        """`node` said it does not lead `shard`. True if its hint gives another node worth asking at once."""
        if hint and hint != node:
            placement = self._placement
            if hint not in placement.holders[shard]:
                self._map.fetch(node)
            if hint in placement.addresses and not self._is_down(hint):
                self._leaders[shard] = hint
                return True
        self._pass_over(shard, node)
        return False

    def failed(self, node: str, *, hangs: bool) -> None:
        """The connection to `node` broke, or it did not answer in time."""
        self._down_until[node] = self._clock.monotonic() + (HANGING_S if hangs else BROKEN_S)

    def _pass_over(self, shard: int, node: str) -> None:
        if self.leader(shard) != node:
            return  # somebody has learnt better meanwhile
        replicas = self._placement.asked[shard]
        at = replicas.index(node) if node in replicas else -1
        order = [replicas[(at + step) % len(replicas)] for step in range(1, len(replicas) + 1)]
        self._leaders[shard] = next((each for each in order if not self._is_down(each)), order[0])

    def _is_down(self, node: str) -> bool:
        until = self._down_until.get(node)
        if until is None:
            return False
        if self._clock.monotonic() < until:
            return True
        del self._down_until[node]
        return False
