"""Which node to ask: the shard map, followed by a watch on any node, and the leader of each shard as far as it is known.

Laws: a map is replaced only by one of a higher epoch of the same cluster; one of the same epoch tells where nodes moved. A
leader is a guess: the preferred replica first, then what NotLeader replies say, and after a failure the next replica of the
list. A node that just failed is passed over for a while, so that the hints of followers who have not noticed yet do not lead
back to it: briefly if its connection broke, which costs little to find out again, longer if it hangs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from client.retry import backoff_s, describe, of_call
from client.tasks import Monotonic, Tasks
from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Dial, Random
from cluster.ring import ring
from proto.gen import meta_pb2, node_pb2

BROKEN_S = 0.1
HANGING_S = 1.0
FIRST_MAP_S = 1.0
REFRESH_S = 0.5
STEADY_S = 1.0  # a stream that lived so long was a good one


class Router:
    """One per client. Methods but `start` and `close` never wait."""

    def __init__(
        self, addresses: list[str], dial: Dial, tasks: Tasks, clock: Monotonic, random: Random, limits: Limits
    ) -> None:
        assert addresses, "the client checks what it is given"
        self._seeds = list(addresses)
        self._dial, self._tasks, self._clock, self._random, self._limits = dial, tasks, clock, random, limits
        self._channels: dict[str, Channel] = {}
        self._address: dict[str, str] = {}
        self._replicas: list[list[str]] = []
        self._versions: list[int] = []
        self._leaders: dict[int, str] = {}
        self._down_until: dict[str, float] = {}
        self._follower: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")
        self._next_seed = random.randrange(0, len(addresses))  # not all clients follow one node
        self._has_map = asyncio.Event()
        self._failures: dict[str, TenfoldError] = {}  # by address; until there is a map
        self.cluster_id = b""
        self.epoch = 0
        self.shards = 0

    async def start(self, timeout_s: float) -> None:
        """Returns when a map is known. If none came in time, UNREACHABLE when every node failed to give one, DEADLINE_PASSED
        when there was no time to ask them all: nothing else was sent, so both are definite."""
        if not timeout_s > 0:
            raise TenfoldError(Code.DEADLINE_PASSED, "the deadline had passed before the operation was tried")
        self._follower = self._tasks(self._follow(), "shard map")
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_map.wait()
        except TimeoutError:
            raise self._unreached(timeout_s) from None

    def _unreached(self, timeout_s: float) -> TenfoldError:
        why = "; ".join(dict.fromkeys(_reason(error) for error in self._failures.values()))
        if self._failures.keys() < set(self._seeds):
            told = f" ({why})" if why else ""
            return TenfoldError(Code.DEADLINE_PASSED, f"no node gave the shard map within {timeout_s:g} s{told}")
        where = ", ".join(self._seeds)
        asked = "is the cluster up? `tenfold status` shows"
        return TenfoldError(Code.UNREACHABLE, f"no node could be reached at {where} ({why}); {asked}")

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    # -- the map -------------------------------------------------------------------------------------------------------

    def shard_of(self, key: bytes) -> int:
        return ring.shard_of(key, self.shards)

    def version(self, shard: int) -> int:
        return self._versions[shard]

    def refresh(self) -> None:
        """A node knows a newer map, or says ours is wrong: ask another node for it."""
        now = self._clock.monotonic()
        if now - self._refreshed_at >= REFRESH_S and self._follower is not None:
            self._refreshed_at = now
            self._follower.cancel()
            self._follower = self._tasks(self._follow(), "shard map")

    async def _follow(self) -> None:
        failures = 0
        while True:
            started = self._clock.monotonic()
            address = self._next_address()
            try:
                await self._follow_one(address)
            except (ChannelBroken, TimeoutError, TenfoldError) as error:
                if not self._has_map.is_set():
                    self._failures[address], _ = of_call(error)
            failures = 1 if self._clock.monotonic() - started >= STEADY_S else failures + 1
            await asyncio.sleep(backoff_s(failures, self._limits, self._random))

    def _next_address(self) -> str:
        known = list(dict.fromkeys([*self._address.values(), *self._seeds]))
        self._next_seed += 1
        return known[self._next_seed % len(known)]

    async def _follow_one(self, address: str) -> None:
        stream = self._channel_to(address).replies("Node", "WatchMap", node_pb2.MapRequest(above_epoch=self.epoch))
        try:
            if not self._has_map.is_set():
                async with asyncio.timeout(FIRST_MAP_S):  # a node that hangs must not keep us from the next one
                    self._install(await anext(stream))
            async for shard_map in stream:
                self._install(shard_map)
        except StopAsyncIteration:
            raise TenfoldError(Code.UNAVAILABLE, f"{address} gave no shard map") from None
        finally:
            with suppress(AttributeError):
                await stream.aclose()  # type: ignore[attr-defined]

    def _install(self, shard_map: meta_pb2.ShardMap) -> None:
        if self.cluster_id and shard_map.cluster_id != self.cluster_id:
            raise TenfoldError(Code.WRONG_CLUSTER, "a node of another cluster answered at an address of this one")
        if shard_map.epoch < self.epoch:
            return
        self._address.update({member.node: member.address for member in shard_map.members})
        if shard_map.epoch == self.epoch:
            return  # what nodes hear of each other's addresses needs no epoch
        assert not self.shards or self.shards == len(shard_map.shards) - 1, "the number of shards never changes"
        self.cluster_id = shard_map.cluster_id
        self.epoch = shard_map.epoch
        self.shards = len(shard_map.shards) - 1
        self._address = {member.node: member.address for member in shard_map.members}
        self._replicas = [[replica.node for replica in shard.replicas] for shard in shard_map.shards]
        self._versions = [shard.version for shard in shard_map.shards]
        self._leaders = {s: node for s, node in self._leaders.items() if node in self._replicas[s]}
        self._has_map.set()

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def channel(self, node: str) -> Channel:
        return self._channel_to(self._address[node])

    def _channel_to(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._dial(address)
        return channel

    def leader(self, shard: int) -> str:
        """The node thought to lead `shard`."""
        return self._leaders.get(shard) or self._replicas[shard][0]

    def any_replica(self, shard: int) -> str:
        """A node that may answer a stale read: any that did not just fail."""
        replicas = self._replicas[shard]
        healthy = [node for node in replicas if not self._is_down(node)] or replicas
        return healthy[self._random.randrange(0, len(healthy))]

    def not_leader(self, shard: int, node: str, hint: str) -> bool:
        """`node` said it does not lead `shard`. True if its hint gives another node worth asking at once."""
        if hint and hint != node and hint in self._replicas[shard] and not self._is_down(hint):
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
        replicas = self._replicas[shard]
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


def _reason(error: TenfoldError) -> str:
    """A connection that failed says so by its message alone."""
    return error.message if error.code in (Code.UNREACHABLE, Code.UNAVAILABLE) else describe(error)
