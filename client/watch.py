"""Watches: the changes of a range in log order per shard, without gap or duplicate.

Every shard watched has a stream of its own to its leader. Law: an event's token names, for each shard, exactly what was given out
before and with it. A place inside a log index (a batch changes several keys at one index) is told as "after the index
before it, and skip so many", so a stream that begins anew, at the same or another leader, goes on at the very next change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Self

from client.cursor import Place, decode_token, encode_token, query_hash
from client.retry import ASK_ANOTHER, ATTEMPT_OVER, backoff_s, of_call, of_code
from client.surroundings import Surroundings
from cluster.errors import TABLE, Code, Refresh, TenfoldError
from cluster.ports import ChannelBroken
from proto.gen import kv_pb2, node_pb2


class Change(StrEnum):
    PUT = "put"
    DELETE = "delete"
    EXPIRE = "expire"


_CHANGES = {kv_pb2.KvEvent.PUT: Change.PUT, kv_pb2.KvEvent.DELETE: Change.DELETE, kv_pb2.KvEvent.EXPIRE: Change.EXPIRE}


@dataclass(frozen=True, slots=True)
class _Position:
    cluster_id: bytes
    query: int
    vector: tuple[tuple[int, Place], ...]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`version` is the log index of the change in its shard; `value` is empty unless it was a put."""

    change: Change
    key: bytes
    value: bytes
    version: int
    _position: _Position

    @property
    def token(self) -> str:
        """A watch with this token goes on with the event behind this one."""
        position = self._position
        return encode_token(position.cluster_id, position.query, dict(position.vector))


class _Told(NamedTuple):
    """From a shard's stream to the caller: an event, or none when only the place moved on."""

    shard: int
    place: Place
    event: kv_pb2.KvEvent | None


class _Ended(NamedTuple):
    """A shard's stream ended for good; told behind all its events."""

    shard: int
    error: TenfoldError


class Watch:
    """Made by `Kv.watch`. `async with` it, or `start` and `stop`; iterating starts it too. One caller iterates.

    Iterating raises what ends the watch: Compacted (`oldest_token` in its details), InvalidCursor, WrongCluster. All else is
    tried again for ever.
    """

    def __init__(self, around: Surroundings, start: bytes, end: bytes, shards: list[int], token: str | None) -> None:
        self._around = around
        self._range = (start, end)
        self._query = query_hash(start, end)
        self._vector: dict[int, Place | None] = dict.fromkeys(shards)
        if token is not None:
            resumed = decode_token(token, around.router.cluster_id, self._query)
            if resumed.keys() != self._vector.keys():
                raise TenfoldError(Code.INVALID_CURSOR, "token: of other shards")
            self._vector.update(resumed)
        self._told: asyncio.Queue[_Told | _Ended] = asyncio.Queue(around.limits.client_watch_events_max)
        self._unconfirmed = set(shards)
        self._confirmed: asyncio.Future[None] | None = None
        self._streams: list[asyncio.Task[None]] = []
        self._error: TenfoldError | None = None

    @property
    def token(self) -> str:
        """Goes on behind all that was given out so far. Only once started."""
        return encode_token(self._around.router.cluster_id, self._query, dict(self._known()))

    def _known(self) -> list[tuple[int, Place]]:
        known = [(shard, place) for shard, place in self._vector.items() if place is not None]
        if len(known) < len(self._vector):
            raise RuntimeError("the watch has not started")
        return known

    async def start(self) -> None:
        """Returns when every shard has confirmed its place. NotLeader after the client's deadline; Compacted."""
        if self._confirmed is not None:
            return
        self._confirmed = self._around.future()
        for shard in self._vector:
            self._streams.append(self._around.tasks(self._follow(shard), f"watch of shard {shard}"))
        try:
            async with asyncio.timeout(self._around.deadline_s):
                await self._confirmed
        except TimeoutError:
            await self.stop()
            waiting = ", ".join(map(str, sorted(self._unconfirmed)))
            told = f"shard{'s' * (len(self._unconfirmed) > 1)} {waiting}: no leader confirmed the watch within {self._around.deadline_s:g} s"
            asked = "is a majority of their replicas up? `tenfold status` shows"
            raise TenfoldError(Code.NOT_LEADER, f"{told}; {asked}") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the streams. May be called twice."""
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.cancel()
        for stream in streams:
            with suppress(asyncio.CancelledError):
                await stream

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        await self.start()
        while True:
            if self._error is not None:
                raise self._error
            told = await self._told.get()
            if isinstance(told, _Ended):
                self._error = self._told_error(told)
                continue
            self._vector[told.shard] = told.place
            if told.event is not None:
                return self._event(told.event)

    def _event(self, event: kv_pb2.KvEvent) -> WatchEvent:
        position = _Position(self._around.router.cluster_id, self._query, tuple(self._known()))
        return WatchEvent(_CHANGES[event.kind], event.key, event.value, event.version, position)

    # -- the stream of one shard ---------------------------------------------------------------------------------------

    async def _follow(self, shard: int) -> None:
        stream = _ShardStream(self, self._around, shard, self._range, self._vector[shard])
        try:
            await stream.run()
        except TenfoldError as error:
            await self._end(_Ended(shard, error))
        except Exception as bug:
            await self._end(_Ended(shard, TenfoldError(Code.INTERNAL, f"{type(bug).__name__}: {bug}")))
            raise

    async def _end(self, ended: _Ended) -> None:
        if self._confirmed is not None and not self._confirmed.done():
            self._confirmed.set_exception(self._told_error(ended))
        else:
            await self._told.put(ended)

    def _told_error(self, ended: _Ended) -> TenfoldError:
        """With the oldest token where history is gone: this watch's own place, with the floor of that shard."""
        error = ended.error
        if error.code is not Code.COMPACTED:
            return error
        floor = int(str(error.details["floor"]))
        vector = {shard: place or Place(0, 0) for shard, place in self._vector.items()}
        vector[ended.shard] = Place(floor, 0)
        token = encode_token(self._around.router.cluster_id, self._query, vector)
        return TenfoldError(Code.COMPACTED, error.message, shard=ended.shard, floor=floor, oldest_token=token)

    def confirm(self, shard: int, place: Place) -> None:
        if self._vector[shard] is None:
            self._vector[shard] = place
        self._unconfirmed.discard(shard)
        if not self._unconfirmed and self._confirmed is not None and not self._confirmed.done():
            self._confirmed.set_result(None)

    async def tell(self, told: _Told) -> None:
        await self._told.put(told)


class _ShardStream:
    """Follows the leader of one shard. `place` is what the caller was handed, or will be from the queue."""

    def __init__(
        self, watch: Watch, around: Surroundings, shard: int, keys: tuple[bytes, bytes], place: Place | None
    ) -> None:
        self._watch, self._around, self._shard, self._keys = watch, around, shard, keys
        self._place = place
        self._failures = 0

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
        self._watch.confirm(self._shard, self._place)
        events = reply.events
        for event in events:
            place = self._place
            assert event.version > place.after, "a stream tells only what is above its place"
            if skip:
                assert event.version == place.after + 1, "what is skipped lies at one index, the next"
                skip -= 1
                continue
            at = place.skip if event.version == place.after + 1 else 0
            self._place = Place(event.version - 1, at + 1)
            await self._watch.tell(_Told(self._shard, self._place, event))
        if reply.index > self._place.after:
            # A reply ends behind whole log indexes: nothing at or below it is still to come.
            assert not skip, "the changes told before are told again first"
            self._place = Place(reply.index, 0)
            await self._watch.tell(_Told(self._shard, self._place, None))
        return skip


class _Refused(Exception):
    """The node answered with an error of the table."""

    def __init__(self, error: TenfoldError, leader: str, floor: int) -> None:
        super().__init__(error.message)
        self.leader = leader
        self.error = TenfoldError(error.code, error.message, floor=floor) if error.code is Code.COMPACTED else error
