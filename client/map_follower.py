"""The newest shard map: followed by a watch on one node, and fetched from another where that one shows that ours is old.

Laws: a map is replaced only by one of a higher epoch of the same cluster; a watched one of the same epoch tells where nodes
moved, which needs no epoch. A fetch never disturbs the watch, so that in a burst of moves neither starves the other; one fetch a node at a time. A watch that stays
behind what fetches bring goes to another node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from client.placement import Placement
from client.retry import backoff_s, describe, of_call
from client.tasks import Monotonic, Tasks
from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Random
from proto.gen import meta_pb2, node_pb2

FIRST_MAP_S = 1.0
FETCH_S = 1.0
HINT_EVERY_S = 0.5  # a reply that names a higher epoch asks for the map no more often: the watch will tell it as well
STEADY_S = 1.0  # a stream that lived so long was a good one
BEHIND_S = 2.0

Installed = Callable[["Placement | None", Placement], None]
"""Told after each map: the placement before and the one now."""


class MapFollower:
    """`placement` is None until the first map. `seeds` are asked until then, and when no member answers."""

    def __init__(
        self,
        seeds: list[str],
        channel_to: Callable[[str], Channel],
        installed: Installed,
        tasks: Tasks,
        clock: Monotonic,
        random: Random,
        limits: Limits,
    ) -> None:
        self.placement: Placement | None = None
        self._seeds = seeds
        self._channel_to, self._installed = channel_to, installed
        self._tasks, self._clock, self._random, self._limits = tasks, clock, random, limits
        self._next = random.randrange(0, len(seeds))  # not all clients follow one node
        self._has_map = asyncio.Event()
        self._failures: dict[str, TenfoldError] = {}  # by address; until there is a map
        self._watch: asyncio.Task[None] | None = None
        self._watch_behind_since: float | None = None
        self._fetching: set[str] = set()
        self._hinted_at = float("-inf")

    @property
    def epoch(self) -> int:
        return self.placement.epoch if self.placement is not None else 0

    async def start(self, timeout_s: float) -> None:
        """Returns when a map is known. If none came in time, UNREACHABLE when every node failed to give one, DEADLINE_PASSED
        when there was no time to ask them all: nothing else was sent, so both are definite."""
        if not timeout_s > 0:
            raise TenfoldError(Code.DEADLINE_PASSED, "the deadline had passed before the operation was tried")
        self._watch = self._tasks(self._follow(), "shard map")
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

    # -- the watch -----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        failures = 0
        while True:
            started = self._clock.monotonic()
            address = self._next_address(failures)
            try:
                await self._follow_one(address)
            except (ChannelBroken, TimeoutError, TenfoldError) as error:
                if not self._has_map.is_set():
                    self._failures[address], _ = of_call(error)
            failures = 1 if self._clock.monotonic() - started >= STEADY_S else failures + 1
            await asyncio.sleep(backoff_s(failures, self._limits, self._random))

    def _next_address(self, failures: int) -> str:
        members = list(self.placement.addresses.values()) if self.placement is not None else []
        known = members if 0 <= failures < len(members) else list(dict.fromkeys([*members, *self._seeds]))
        self._next += 1
        return known[self._next % len(known)]

    async def _follow_one(self, address: str) -> None:
        stream = self._channel_to(address).replies("Node", "WatchMap", node_pb2.MapRequest(above_epoch=self.epoch))
        try:
            if not self._has_map.is_set():
                async with asyncio.timeout(FIRST_MAP_S):  # a node that hangs must not keep us from the next one
                    self._install(await anext(stream))
            async for shard_map in stream:
                self._watch_behind_since = None
                self._install(shard_map)
        except StopAsyncIteration:
            raise TenfoldError(Code.UNAVAILABLE, f"{address} gave no shard map") from None
        finally:
            with suppress(AttributeError):
                await stream.aclose()  # type: ignore[attr-defined]

    def _install(self, shard_map: meta_pb2.ShardMap) -> None:
        before = self.placement
        if before is not None:
            if shard_map.cluster_id != before.cluster_id:
                raise TenfoldError(Code.WRONG_CLUSTER, "a node of another cluster answered at an address of this one")
            if shard_map.epoch < before.epoch:
                return
            assert before.shards == len(shard_map.shards) - 1, "the number of shards never changes"
        self.placement = Placement(shard_map)
        self._installed(before, self.placement)
        self._has_map.set()

    # -- fetches -------------------------------------------------------------------------------------------------------

    def hinted(self, node: str) -> None:
        """An answer of `node` named a higher epoch than ours."""
        if self._clock.monotonic() - self._hinted_at >= HINT_EVERY_S:
            self._hinted_at = self._clock.monotonic()
            self.fetch(node)

    def fetch(self, node: str) -> None:
        """`node` says that our map is wrong: its own is asked for at once."""
        assert self.placement is not None, "who has answered, was found by a map"
        address = self.placement.addresses.get(node)
        if address is not None and node not in self._fetching:
            self._fetching.add(node)
            self._tasks(self._fetch(node, address), f"shard map of {node}")

    async def _fetch(self, node: str, address: str) -> None:
        """What goes wrong here is no matter: whoever still needs the map asks again."""
        before = self.epoch
        request = node_pb2.MapRequest(above_epoch=before - 1)  # answered at once, by an equal map too
        stream = self._channel_to(address).replies("Node", "WatchMap", request)
        try:
            async with asyncio.timeout(FETCH_S):
                shard_map = await anext(stream)
            if shard_map.epoch > self.epoch:  # an equal one may be of a node that has not heard yet where others moved
                self._install(shard_map)
        except (ChannelBroken, TimeoutError, TenfoldError, StopAsyncIteration):
            return
        finally:
            self._fetching.discard(node)
            with suppress(AttributeError):
                await stream.aclose()  # type: ignore[attr-defined]
        if self.epoch > before:
            self._leave_a_watch_that_is_behind()

    def _leave_a_watch_that_is_behind(self) -> None:
        now = self._clock.monotonic()
        if self._watch_behind_since is None:
            self._watch_behind_since = now
        elif now - self._watch_behind_since >= BEHIND_S and self._watch is not None:
            self._watch_behind_since = None
            self._watch.cancel()
            self._watch = self._tasks(self._follow(), "shard map")


def _reason(error: TenfoldError) -> str:
    """A connection that failed says so by its message alone."""
    return error.message if error.code in (Code.UNREACHABLE, Code.UNAVAILABLE) else describe(error)
