"""Locks of a cluster as the workload asks for them: one command an attempt, sent once under its session, and every feed followed.

Beneath the client's facade on purpose: the workload keeps leases alive, forgets and haunts by itself, and is told the log index of
every answer. The feed of each shard is followed from its beginning; private events end waits, public ones go on record as what
was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chaos.history import FEED, LockFacts, Recorder
from chaos.workloads.kv import Value
from chaos.workloads.lock_calls import Ask, Granted, NotGranted, Released
from client.client import Client
from client.cursor import Place
from client.requests import Command
from client.results import Put
from client.shard_stream import ShardStream
from client.surroundings import Surroundings
from cluster.errors import Code, TenfoldError
from proto.gen import lock_pb2, node_pb2
from proto.gen.entry_pb2 import Fence

KEYS = (b"a", b"o")
"""Of a shard's lock feed: attempts under `a`, locks under `n`."""
CAPABILITY = "lock"
PAUSE_S = 0.1


def surroundings(client: Client) -> Surroundings:
    return client.kv._around


class LockFeed:
    """What every shard's feed tells. With a recorder it puts on record who holds what."""

    def __init__(self, around: Surroundings, recorder: Recorder | None = None) -> None:
        self.told: dict[int, int] = {}  # shard -> log index up to which everything was told
        self._around, self._recorder = around, recorder
        self._waiting: dict[tuple[int, int], tuple[int, asyncio.Future[lock_pb2.LockEvent]]] = {}

    def expect(self, ask: Ask) -> asyncio.Future[lock_pb2.LockEvent]:
        """What becomes of the attempt, should it wait. To be called before it is sent, and `forget` afterwards."""
        future: asyncio.Future[lock_pb2.LockEvent] = self._around.future()
        self._waiting[ask.lease, ask.attempt] = (ask.shard, future)
        return future

    def forget(self, ask: Ask) -> None:
        self._waiting.pop((ask.lease, ask.attempt), None)

    async def run(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(*(self._follow(shard) for shard in range(1, self._around.router.shards + 1)))

    async def _follow(self, shard: int) -> None:
        place = Place(0, 0)
        while True:
            stream = ShardStream(self, self._around, CAPABILITY, _parse, shard, KEYS, place)
            try:
                await stream.run()
            except TenfoldError as error:
                place = self._after(shard, error)
            await asyncio.sleep(PAUSE_S)

    def _after(self, shard: int, error: TenfoldError) -> Place:
        """Where to go on. What was missed nobody knows: those who wait here are told so."""
        if error.code is Code.COMPACTED:
            floor = int(str(error.details["floor"]))
            if self._recorder is not None:
                self._recorder.record(FEED, "info", "gap", shard=shard, version=floor)
            for where, future in self._waiting.values():
                if where == shard and not future.done():
                    future.set_exception(TenfoldError(Code.UNKNOWN_OUTCOME, "the feed has gone on"))
            return Place(floor, 0)
        return Place(self.told.get(shard, 0), 0)

    # -- what a stream tells -------------------------------------------------------------------------------------------

    def confirm(self, shard: int, place: Place) -> None:
        pass

    async def tell(self, shard: int, place: Place, event: lock_pb2.LockEvent | None) -> None:
        self.told[shard] = max(place.after, self.told.get(shard, 0))
        if event is None:
            return
        if event.kind == lock_pb2.LockEvent.CHANGED:
            self._record(shard, event)
            return
        waiting = self._waiting.get((event.lease, event.attempt))
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(event)

    def _record(self, shard: int, event: lock_pb2.LockEvent) -> None:
        if self._recorder is None:
            return
        facts = LockFacts(index=event.index)
        if event.HasField("holder"):
            holder = event.holder
            lease, attempt = int(holder.owner, 16), int(holder.metadata)  # as the workload says who it is
            facts = LockFacts(lease=lease, attempt=attempt, token=holder.token, index=event.index)
        self._recorder.record(FEED, "ok", "holder" if facts.lease else "free", key=event.name, shard=shard, lock=facts)


def _parse(raw: bytes) -> tuple[int, lock_pb2.LockEvent]:
    event = lock_pb2.LockEvent.FromString(raw)
    return event.index, event


class ClientLocks:
    """`Locks` over a client; `feed` is to be run beside it, in the same process."""

    def __init__(self, client: Client, recorder: Recorder | None = None) -> None:
        self._around, self._kv = surroundings(client), client.kv
        self.feed = LockFeed(self._around, recorder)

    async def acquire(self, ask: Ask, queued: Callable[[int], None], *, deadline_s: float) -> Granted:
        asked = lock_pb2.LockAcquire(
            name=ask.name, lease=ask.lease, attempt=ask.attempt, owner=ask.owner, metadata=ask.metadata, ttl_ms=ask.ttl_ms, wait_ms=ask.wait_ms,
            mode=lock_pb2.LockMode.Value(ask.mode.upper()), capacity=ask.capacity, permits=ask.permits, new_lease=ask.new_lease,
            delay_ms=ask.delay_ms, reentrant=ask.reentrant,
        )  # fmt: skip
        told = self.feed.expect(ask)
        try:
            async with asyncio.timeout(deadline_s):
                result, index = await self._send(ask.shard, lock_pb2.LockCommand(acquire=asked), deadline_s)
                if result.granted:
                    return Granted(result.token, index)
                if not result.waiting:
                    raise NotGranted("HELD", index)
                queued(index)
                event = await told
                while event.index <= index:  # it is about what was taken away before the attempt was asked again
                    told = self.feed.expect(ask)
                    event = await told
        except TimeoutError:
            raise TenfoldError(Code.DEADLINE_EXCEEDED, "nobody said how the wait ended") from None
        finally:
            self.feed.forget(ask)
            told.cancel()
        if event.kind == lock_pb2.LockEvent.GRANTED:
            return Granted(event.token, event.index)
        raise NotGranted(lock_pb2.LockEvent.Kind.Name(event.kind), event.index, event.reason)

    async def renew(self, shard: int, lease: int, ttl_ms: int, *, deadline_s: float) -> None:
        command = lock_pb2.LockCommand(renew=lock_pb2.LockRenew(lease=lease, ttl_ms=ttl_ms))
        await self._send(shard, command, deadline_s)

    async def release(self, ask: Ask, *, deadline_s: float) -> Released:
        asked = lock_pb2.LockRelease(name=ask.name, lease=ask.lease, attempt=ask.attempt)
        result, index = await self._send(ask.shard, lock_pb2.LockCommand(release=asked), deadline_s)
        return Released(result.released, index)

    async def end(self, shard: int, lease: int, *, deadline_s: float) -> Released:
        command = lock_pb2.LockCommand(end_lease=lock_pb2.LockEndLease(lease=lease))
        result, index = await self._send(shard, command, deadline_s)
        return Released(result.released, index)

    async def put(self, key: str, value: str, fence: tuple[str, int] | None, *, deadline_s: float) -> int:
        return await self._kv.put(key, value, if_fence=fence, deadline_s=deadline_s)

    async def confirm(self, key: str, value: str, fence: tuple[str, int], *, deadline_s: float) -> int:
        shown = Fence(name=fence[0], token=fence[1], holder=True, release=True)
        result = await self._kv.fenced([], [Put(key, value)], [], [shown], deadline_s)
        return result.version

    async def force(self, name: str, shard: int, *, deadline_s: float) -> Released:
        command = lock_pb2.LockCommand(force_release=lock_pb2.LockForceRelease(name=name))
        result, index = await self._send(shard, command, deadline_s)
        return Released(result.released, index)

    async def get(self, key: str, *, deadline_s: float) -> Value | None:
        return await self._kv.get(key, deadline_s=deadline_s)

    async def _send(
        self, shard: int, command: lock_pb2.LockCommand, deadline_s: float
    ) -> tuple[lock_pb2.LockResult, int]:
        """The answer and the log index of the command."""
        around, body = self._around, command.SerializeToString()
        pending = Command(around.future(), around.deadline(deadline_s), CAPABILITY, body, 1)
        around.batcher.add(shard, pending)
        reply: node_pb2.SubReply | TenfoldError = await pending.future
        if isinstance(reply, TenfoldError):
            raise reply
        return lock_pb2.LockResult.FromString(reply.body), reply.index
