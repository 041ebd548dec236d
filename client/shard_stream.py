"""The changes of one shard, followed from leader to leader: what every watch of any capability stands on.

Law: a place inside a log index (an entry may change several keys) is "after the index before it, and skip so many", so a stream
that begins anew goes on at the very next change: none is missed, none is told twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from client.cursor import Place
from client.retry import ASK_ANOTHER, ATTEMPT_OVER, backoff_s, of_call, of_code
from client.surroundings import Surroundings
from cluster.errors import TABLE, Code, Refresh, TenfoldError
from cluster.ports import ChannelBroken
from proto.gen import node_pb2

E = TypeVar("E")
Told = TypeVar("Told", contravariant=True)


class Taker(Protocol[Told]):
    """Who follows a shard."""

    def confirm(self, shard: int, place: Place) -> None:
        """The leader has answered, and what comes next is behind `place`. Told at every reply."""

    async def tell(self, shard: int, place: Place, event: Told | None) -> None:
        """An event, or none when only the place moved on. To wait here holds the stream up."""


class ShardStream(Generic[E]):
    """Follows the leader of one shard. `parse` gives the log index of an event and the event; `keys` is the range, an empty end
    meaning to the last; `place` is where to begin, None being now. It ends by a retriable error, too, after `failures_max` in a row."""

    def __init__(
        self,
        taker: Taker[E],
        around: Surroundings,
        capability: str,
        parse: Callable[[bytes], tuple[int, E]],
        shard: int,
        keys: tuple[bytes, bytes],
        place: Place | None,
        *,
        failures_max: int | None = None,
    ) -> None:
        self._failures_max = failures_max
        self._taker, self._around, self._shard, self._keys = taker, around, shard, keys
        self._capability, self._parse = capability, parse
        self._place = place
        self._failures = 0

    @property
    def place(self) -> Place | None:
        """Behind what has been told."""
        return self._place

    async def run(self) -> None:
        """For ever, or until an error that is not retriable."""
        router = self._around.router
        while True:
            node = router.leader(self._shard)
            hint = ""
            try:
                await self._stream(node)
                error = TenfoldError(Code.UNAVAILABLE, "the stream ended")
            except _Refused as refused:
                error, hint = refused.error, refused.leader
            except (ChannelBroken, TimeoutError, TenfoldError) as failure:
                error, _ = of_call(failure)
                if error.code in (Code.UNAVAILABLE, Code.UNREACHABLE):
                    router.failed(node, hangs=False)
            if not error.retriable and error.code not in ATTEMPT_OVER:
                raise error
            refresh = TABLE[error.code].refresh
            if refresh is Refresh.MAP:
                router.map_is_wrong(node)
            if error.code is Code.SHUTTING_DOWN:
                router.failed(node, hangs=False)
            elsewhere = refresh is not Refresh.NOTHING or error.code in ASK_ANOTHER
            better = elsewhere and router.not_leader(self._shard, node, hint)
            self._failures += 1
            if self._failures == self._failures_max:
                raise error
            if not better or self._failures > 3:
                await asyncio.sleep(backoff_s(self._failures, self._around.limits, self._around.random))

    async def _stream(self, node: str) -> None:
        router, place = self._around.router, self._place
        start, end = self._keys
        request = node_pb2.WatchRequest(
            cluster_id=router.cluster_id,
            shard=self._shard,
            shard_version=router.version(self._shard),
            start=start,
            end=end,
            after_index=place.after if place else 0,
            from_now=place is None,
            capability=self._capability,
        )
        skip = place.skip if place else 0
        stream = router.channel(node).replies("Node", "Watch", request)
        try:
            async for reply in stream:
                if reply.code:
                    raise _Refused(of_code(reply.code, reply.message), reply.leader, reply.floor)
                self._failures = 0
                skip = await self._take(reply, skip)
        finally:
            with suppress(AttributeError):
                await stream.aclose()  # type: ignore[attr-defined]

    async def _take(self, reply: node_pb2.WatchReply, skip: int) -> int:
        """Hands on what is new in a reply. `skip` changes were told before the stream broke; how many are left to skip."""
        if self._place is None:
            self._place = Place(reply.index, 0)
        self._taker.confirm(self._shard, self._place)
        for raw in reply.events:
            index, event = self._parse(raw)
            place = self._place
            assert index > place.after, "a stream tells only what is above its place"
            if skip:
                assert index == place.after + 1, "what is skipped lies at one index, the next"
                skip -= 1
                continue
            at = place.skip if index == place.after + 1 else 0
            self._place = Place(index - 1, at + 1)
            await self._taker.tell(self._shard, self._place, event)
        if reply.index > self._place.after:
            # A reply ends behind whole log indexes: nothing at or below it is still to come.
            assert not skip, "the changes told before are told again first"
            self._place = Place(reply.index, 0)
            await self._taker.tell(self._shard, self._place, None)
        return skip


class _Refused(Exception):
    """The node answered with an error of the table."""

    def __init__(self, error: TenfoldError, leader: str, floor: int) -> None:
        super().__init__(error.message)
        self.leader = leader
        self.error = TenfoldError(error.code, error.message, floor=floor) if error.code is Code.COMPACTED else error
