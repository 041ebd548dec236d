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
from client.shard_stream import ShardStream
from client.surroundings import Surroundings
from cluster.errors import Code, TenfoldError
from proto.gen import kv_pb2


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


def parse_event(raw: bytes) -> tuple[int, kv_pb2.KvEvent]:
    event = kv_pb2.KvEvent.FromString(raw)
    return event.version, event


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
        stream = ShardStream(self, self._around, "kv", parse_event, shard, self._range, self._vector[shard])
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

    async def tell(self, shard: int, place: Place, event: kv_pb2.KvEvent | None) -> None:
        await self._told.put(_Told(shard, place, event))
