"""What is to be seen of locks: who holds, who waits and for how long; one lock, all of them, and the changes of one.

Names lie in shards as keys do, so a list asks every shard for its pages and gives them out in the order of the names. It is no
snapshot: each page is of a moment of its shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from client.cursor import Place
from client.lock_calls import LockCalls
from client.lock_waits import FAILURES, parse_event
from client.retry import backoff_s
from client.shard_stream import ShardStream
from cluster.errors import Code, TenfoldError
from proto.gen.lock_pb2 import LockEvent, LockHolder, LockMode, LockState, LockWaiter

MODES = {"exclusive": LockMode.EXCLUSIVE, "shared": LockMode.SHARED, "semaphore": LockMode.SEMAPHORE}
_MODE_NAMES = {mode: name for name, mode in MODES.items()}


@dataclass(frozen=True, slots=True)
class Holder:
    """`remaining_ms`: of its lease, by the shard's time, if it is not renewed."""

    owner: str
    token: int
    remaining_ms: int
    metadata: bytes
    permits: int


@dataclass(frozen=True, slots=True)
class Waiter:
    """`mode` and `permits` are what it wants, `waited_ms` for how long it has waited."""

    owner: str
    waited_ms: int
    mode: str
    permits: int
    metadata: bytes


@dataclass(frozen=True, slots=True)
class LockInfo:
    """`waiters` in the order in which they will be served; `waiters_count` counts those, too, that are not listed. While
    `delay_remaining_ms` is not 0 nobody gets the lock, since its holder was lost. A lock nobody holds is free."""

    name: str
    mode: str
    capacity: int
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]
    waiters_count: int
    delay_remaining_ms: int


@dataclass(frozen=True, slots=True)
class LockChange:
    """`holder` is one who holds the lock now, None: nobody."""

    name: str
    holder: Holder | None


def info_of(state: LockState) -> LockInfo:
    return LockInfo(
        state.name,
        _MODE_NAMES[state.mode],
        state.capacity,
        tuple(holder_of(each) for each in state.holders),
        tuple(_waiter_of(each) for each in state.waiters),
        max(state.waiters_count, len(state.waiters)),
        state.delay_remaining_ms,
    )


def holder_of(each: LockHolder) -> Holder:
    return Holder(each.owner, each.token, each.remaining_ms, each.metadata, each.permits)


def _waiter_of(each: LockWaiter) -> Waiter:
    mode = _MODE_NAMES[each.mode]
    return Waiter(each.owner, each.waited_ms, mode, each.permits, each.metadata)


async def list_locks(calls: LockCalls, prefix: str, deadline_s: float | None) -> list[LockInfo]:
    """Those that are held or waited for, in the order of their names."""
    found: list[LockInfo] = []
    for shard in range(1, calls.around.router.shards + 1):
        start = ""
        while True:
            answer = await calls.page(shard, start, prefix, calls.around.limits.lock_list_max, deadline_s)
            found += [info_of(state) for state in answer.locks]
            if not answer.more:
                break
            assert answer.next > start, "a page goes on behind the one before"
            start = answer.next
    return sorted(found, key=lambda info: info.name)


class LockWatch:
    """Who holds a lock: first as it is, then at every change. `async with` it, or iterate and `stop`. One caller iterates.

    What changed while the stream was broken is told by its last state. Never ends by itself."""

    def __init__(self, calls: LockCalls, name: str) -> None:
        self._calls, self._around, self._name = calls, calls.around, name
        self._told: asyncio.Queue[LockChange | TenfoldError] = asyncio.Queue(
            calls.around.limits.client_watch_events_max
        )
        self._task: asyncio.Task[None] | None = None
        self._shown: int | None = None  # the token last told, None before the first

    async def start(self) -> None:
        """Returns when the first state is known. TenfoldError as for `check`."""
        if self._task is None:
            place = await self._state()
            self._task = self._around.tasks(self._follow(place), f"watch of the lock {self._name}")

    async def stop(self) -> None:
        """May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __aiter__(self) -> AsyncIterator[LockChange]:
        return self

    async def __anext__(self) -> LockChange:
        await self.start()
        told = await self._told.get()
        if isinstance(told, TenfoldError):
            raise told
        return told

    async def _state(self) -> Place:
        state, index = await self._calls.get(self._name)
        await self._tell(holder_of(state.holders[0]) if state.holders else None)
        return Place(index, 0)

    async def _follow(self, place: Place) -> None:
        start = b"n" + self._name.encode()
        failures = 0
        while True:
            keys, shard = (start, start + b"\0"), self._calls.shard_of(self._name)
            try:
                stream = ShardStream[LockEvent](
                    self, self._around, "lock", parse_event, shard, keys, place, failures_max=FAILURES
                )
                await stream.run()
            except TenfoldError as error:
                if error.code in (Code.WRONG_CLUSTER, Code.UNKNOWN_CAPABILITY):
                    await self._told.put(error)
                    return
            failures += 1
            await asyncio.sleep(backoff_s(failures, self._around.limits, self._around.random))
            with suppress(TenfoldError):
                place = await self._state()

    def confirm(self, shard: int, place: Place) -> None:
        """The stream is up; nothing waits for that."""

    async def tell(self, shard: int, place: Place, event: LockEvent | None) -> None:
        if event is not None:
            await self._tell(holder_of(event.holder) if event.HasField("holder") else None)

    async def _tell(self, holder: Holder | None) -> None:
        shown = holder.token if holder is not None else 0
        if shown != self._shown:
            self._shown = shown
            await self._told.put(LockChange(self._name, holder))
