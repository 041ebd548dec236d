"""How the attempts of a lease end that wait, and how those end early that hold: one stream of events per shard.

Law: an attempt is expected before it is sent, so whatever the stream tells of it is heard. Where the history of a shard is gone,
or its stream cannot go on, the shard is asked how each attempt stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from client.cursor import Place
from client.lock_calls import LockCalls
from client.lock_lease import Lease
from client.retry import backoff_s
from client.shard_stream import ShardStream
from cluster.errors import Code, TenfoldError
from proto.gen.lock_pb2 import LockEvent, LockResult


@dataclass(frozen=True, slots=True)
class End:
    """How a wait ended. Without a token it was not granted, for `error`."""

    token: int = 0
    error: TenfoldError | None = None


@dataclass(slots=True)
class Expected:
    """An attempt in its shard. `on_lost` is told the reason when what it holds is taken away."""

    name: str
    shard: int
    attempt: int
    owner: str
    ended: asyncio.Future[End]
    queued: bool = False
    """The shard has said that it waits."""
    since: float = 0.0
    on_lost: Callable[[str], None] | None = field(default=None)

    def end(self, end: End) -> None:
        if not self.ended.done():
            self.ended.set_result(end)
        elif self.on_lost is not None and end.error is not None:
            self.on_lost(end.error.message)


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
            if stream is not None and stream is not asyncio.current_task():
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
            stream = ShardStream[LockEvent](self, self._around, "lock", parse_event, shard, (start, end), place)
            floor: object = None
            try:
                await stream.run()
            except TenfoldError as error:
                floor = error.details.get("floor")
            place = await self._ask(shard, int(str(floor)) if floor is not None else None)
            failures += 1
            await asyncio.sleep(backoff_s(failures, self._around.limits, self._around.random))

    async def _ask(self, shard: int, floor: int | None) -> Place:
        """Asks how each attempt stands; the place from which events tell the rest."""
        after = floor
        for each in [each for each in self._expected.values() if each.shard == shard]:
            try:
                result, index = await self._calls.check(shard, each.name, self._lease.id, each.attempt)
            except TenfoldError:
                return Place(after or 0, 0)  # it is too old again if nobody answers, and all is asked once more
            after = index if after is None else min(after, index)
            self._stands(each, result)
        return Place(after or 0, 0)

    def _stands(self, expected: Expected, result: LockResult) -> None:
        if result.granted:
            if not expected.ended.done():
                expected.end(End(token=result.token))
        elif not result.waiting and (expected.queued or expected.ended.done()):
            reason = f"{expected.name!r}: it neither holds nor waits any more"
            expected.end(End(error=TenfoldError(Code.LEASE_LOST, reason)))

    def confirm(self, shard: int, place: Place) -> None:
        """The stream is up; nothing waits for that."""

    async def tell(self, shard: int, place: Place, event: LockEvent | None) -> None:
        expected = self._expected.get(event.attempt) if event is not None else None
        if event is None or expected is None or expected.name != event.name:
            return
        if event.kind == LockEvent.GRANTED:
            if not expected.ended.done():
                expected.end(End(token=event.token))
            return
        expected.end(End(error=_why(event)))


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
