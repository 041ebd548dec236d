"""How the attempts of a lease end that wait, and how those end early that hold: one stream of events per shard.

Law: an attempt is expected before it is sent, so whatever the stream tells of it is heard. Where the history of a shard is gone,
or its stream cannot go on, the shard is asked how each attempt stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from client.cursor import Place
from client.lock_calls import Answered, LockCalls
from client.lock_lease import Lease
from client.retry import backoff_s
from client.shard_stream import ShardStream
from cluster.errors import Code, TenfoldError
from proto.gen.lock_pb2 import LockEvent

FAILURES = 3
"""Of a stream in a row: then the shard is asked instead, since its nodes may have no room for another watch."""


@dataclass(frozen=True, slots=True)
class End:
    """How a wait ended. Without a token it was not granted, for `error`; `over`: because its time was up."""

    token: int = 0
    error: TenfoldError | None = None
    over: bool = False


@dataclass(slots=True)
class Expected:
    """An attempt in its shard. `on_lost` is told the reason when what it holds is taken away.

    What is heard of it has a log index. An answer to its acquire is the truth at its index, whatever the stream has told of an
    earlier one: an acquire that is asked again begins anew where a wait has ended meanwhile."""

    name: str
    shard: int
    attempt: int
    owner: str
    ended: asyncio.Future[End]
    queued: bool = False
    """The shard has said that it waits."""
    since: float = 0.0
    entered: bool = False
    """The lease counts it in its shard."""
    lost: str = ""
    on_lost: Callable[[str], None] | None = field(default=None)
    answered: int = 0
    _told: int = 0

    def answer(self, token: int, index: int) -> None:
        """The shard holds it under `token`, or has put it into the queue."""
        self.answered = index
        if self.ended.done() and self._told <= index:
            self.ended = self.ended.get_loop().create_future()
        if token and not self.ended.done():
            self._told = index
            self.ended.set_result(End(token=token))

    def end(self, end: End, index: int) -> None:
        """Told at a log index."""
        if index <= self.answered:
            return
        if not self.ended.done():
            self._told = index
            self.ended.set_result(end)
        elif end.error is not None and self.ended.result().token:
            self.lost = end.error.message
            if self.on_lost is not None:
                self.on_lost(self.lost)


class Waits:
    """Of one lease."""

    def __init__(self, calls: LockCalls, lease: Lease) -> None:
        self._calls, self._around, self._lease = calls, calls.around, lease
        self._expected: dict[int, Expected] = {}
        self._streams: dict[int, asyncio.Task[None]] = {}
        lease.on_lost[self._lease_lost] = None
        lease.on_kept = self.follow

    def expect(self, name: str, shard: int, attempt: int, owner: str) -> Expected:
        expected = Expected(name, shard, attempt, owner, self._around.future())
        self._expected[attempt] = expected
        return expected

    def forget(self, expected: Expected) -> None:
        """It neither holds nor waits; the shard's stream ends with its last attempt."""
        self._expected.pop(expected.attempt, None)
        if not any(each.shard == expected.shard for each in self._expected.values()):
            stream = self._streams.pop(expected.shard, None)
            if stream is not None:
                stream.cancel()

    @property
    def waiting(self) -> list[Expected]:
        return [each for each in self._expected.values() if each.queued and not each.ended.done()]

    def _lease_lost(self, reason: str) -> None:
        expected, self._expected = self._expected, {}
        for each in expected.values():
            if not each.ended.done():
                each.ended.set_result(End(error=TenfoldError(Code.LEASE_LOST, reason)))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            if stream is not asyncio.current_task():
                stream.cancel()

    # -- the stream of a shard -----------------------------------------------------------------------------------------

    def follow(self, shard: int, after_index: int) -> None:
        """What comes above `after_index` will be heard. Once a shard."""
        if shard not in self._streams and any(each.shard == shard for each in self._expected.values()):
            work = self._follow(shard, Place(after_index, 0))
            self._streams[shard] = self._around.tasks(work, f"lease {self._lease.id:x}: events of shard {shard}")

    async def _follow(self, shard: int, place: Place) -> None:
        start = b"a" + self._lease.id.to_bytes(8, "big")
        end = start + b"\xff" * 9
        failures = 0
        while True:
            stream = ShardStream[LockEvent](
                self, self._around, "lock", parse_event, shard, (start, end), place, failures_max=FAILURES
            )
            floor: object = None
            try:
                await stream.run()
            except TenfoldError as error:
                floor = error.details.get("floor")
            place = await self._ask(shard, int(str(floor)) if floor is not None else None, stream.place or place)
            failures += 1
            await asyncio.sleep(backoff_s(failures, self._around.limits, self._around.random))

    async def _ask(self, shard: int, floor: int | None, place: Place) -> Place:
        """Asks how each attempt stands; the place from which events tell the rest: as before, if nobody answers."""
        after = floor
        for each in [each for each in self._expected.values() if each.shard == shard]:
            try:
                answered = await self._calls.check(shard, each.name, self._lease.id, each.attempt)
            except TenfoldError:
                return place
            after = answered.log_index if after is None else min(after, answered.log_index)
            _stands(each, answered)
        return Place(after, 0) if after is not None else place

    def confirm(self, shard: int, place: Place) -> None:
        """The stream is up; nothing waits for that."""

    async def tell(self, shard: int, place: Place, event: LockEvent | None) -> None:
        expected = self._expected.get(event.attempt) if event is not None else None
        if event is None or expected is None or expected.name != event.name:
            return
        if event.kind == LockEvent.GRANTED:
            expected.end(End(token=event.token), event.index)
        else:
            expected.end(End(error=_why(event), over=event.kind == LockEvent.TIMED_OUT), event.index)


def _stands(expected: Expected, answered: Answered) -> None:
    """As a shard tells it that was asked."""
    result, index = answered
    if result.granted:
        expected.end(End(token=result.token), index)
    elif not result.waiting and (expected.queued or expected.ended.done()):
        reason = f"{expected.name!r}: it neither holds nor waits any more"
        expected.end(End(error=TenfoldError(Code.LEASE_LOST, reason)), index)


def parse_event(raw: bytes) -> tuple[int, LockEvent]:
    event = LockEvent.FromString(raw)
    return event.index, event


def _why(event: LockEvent) -> TenfoldError:
    name = f"{event.name!r}"
    match event.kind:
        case LockEvent.TIMED_OUT:
            return TenfoldError(Code.DEADLINE_PASSED, f"{name} was not to be had in the time given; nothing is held")
        case LockEvent.DEADLOCK:
            return TenfoldError(Code.DEADLOCK, event.reason, cycle=event.reason)
        case LockEvent.CANCELLED:
            return TenfoldError(Code.LEASE_LOST, f"{name}: the wait was given up")
        case _:
            return TenfoldError(Code.LEASE_LOST, f"{name}: {event.reason or 'the lease expired'}")
