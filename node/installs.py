"""Snapshots that arrive: taken chunk by chunk beside the state that counts, then switched to.

Install (architecture section "storage"): chunks go under a new generation prefix; one batch switches generation and
applied index; flush; then the log's base moves; then the old generation is deleted. A crash between any two of these
leaves a replica that recovery brings to one side or the other. What a broken stream left is kept for `snapshot_resume_ms`,
so that the same sender may go on with the same snapshot; another one takes its place only when nobody is sending it, or when
its sender is deposed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import structlog
import xxhash

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ChannelBroken, StorageFailed
from cluster.raft.messages import Message, MessageKind
from node.pump import Pump
from node.replica import Replica
from node.storage.snapshot import STALL_RETRY_S
from node.storage.view import NodeState, SnapshotSink
from node.transport.codec import from_wire
from node.transport.snapshot_stream import ACKNOWLEDGE_CHUNKS, Arriving
from proto.gen import peer_pb2

Work = Callable[[], Awaitable[None]]

log = structlog.get_logger("snapshots")


class Refused(Exception):
    """What has come is of no use: it is thrown away, and the sender is told; also that the replica `held` it all."""

    def __init__(self, reason: str, *, held: bool = False) -> None:
        super().__init__(reason)
        self.held = held


class Half:
    """A snapshot that is arriving, or waits for its sender to go on. `next` is the first chunk not taken."""

    def __init__(self, replica: Replica, node: str, header: peer_pb2.SnapshotHeader, message: Message) -> None:
        self.replica = replica
        self.node = node
        self.header = header
        self.message = message
        self.sink: SnapshotSink = replica.state.begin_install()
        self.next = 0
        self.whole = False
        self.over = False  # installed or thrown away
        self.installed: asyncio.Future[str] | None = None  # once it is whole: resolved with why not, empty if it was
        self.free = asyncio.Event()  # no stream brings it at present
        self.timer: asyncio.TimerHandle | None = None
        self._digest = xxhash.xxh3_64()

    def same(self, node: str, header: peer_pb2.SnapshotHeader) -> bool:
        mine, other = self.header, header
        return (self.node, mine.id, mine.time_ms, mine.message) == (node, other.id, other.time_ms, other.message)

    async def take(self, chunk: peer_pb2.SnapshotChunk) -> None:
        """Counts once it is written as a whole: one that was broken off is sent again, and written over."""
        if chunk.number != self.next:
            raise ChannelBroken(f"chunk {chunk.number} came where {self.next} was due")
        if chunk.last:
            if chunk.digest != self._digest.intdigest():
                raise Refused("the digest does not match what came")
            self.whole = True
        else:
            await self.sink.add(chunk.pairs)
            self._digest.update(chunk.pairs)
            self.next += 1


class Installs:
    """The receiving side of a node's snapshots; one per shard at a time."""

    def __init__(self, pump: Pump, state: NodeState, start: Callable[[Work, str], None], limits: Limits) -> None:
        self.installed = 0
        self._pump = pump
        self._state = state
        self._start = start
        self._limits = limits
        self._halves: dict[int, Half] = {}
        self._closing = False

    async def receive(
        self, replica: Replica, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        """The replies to one stream of `node`: accepted once the snapshot is installed and the log's base has moved."""
        half: Half | None = None
        try:
            half = await self._begin(replica, node, header)
            yield peer_pb2.SnapshotReply(next=half.next)
            acknowledged, unacknowledged_bytes = half.next, 0
            while not half.whole:
                chunk = await chunks.next()
                await self._take(half, chunk)
                unacknowledged_bytes += len(chunk.pairs)
                if (
                    half.next - acknowledged >= ACKNOWLEDGE_CHUNKS
                    or unacknowledged_bytes >= ACKNOWLEDGE_CHUNKS * self._limits.snapshot_chunk_bytes
                ):
                    acknowledged, unacknowledged_bytes = half.next, 0
                    yield peer_pb2.SnapshotReply(next=half.next)
            # From here on the install is the node's own affair: the sender may die, and this call with it.
            installed = half.installed or self._install_soon(half)
            while not await _done_within(self._limits.snapshot_idle_ms / 4000, installed):
                yield peer_pb2.SnapshotReply(next=half.next)
            reason = installed.result()
            yield peer_pb2.SnapshotReply(next=half.next, done=True, accepted=not reason, reason=reason)
        except Refused as refusal:
            log.info("snapshot refused", shard=replica.shard, sender=node, reason=str(refusal))
            if half is not None:
                self._throw_away(half)
            yield peer_pb2.SnapshotReply(done=True, accepted=refusal.held, reason=str(refusal))
        except StorageFailed as error:
            self.fail_soon(error)
            raise TenfoldError(Code.UNAVAILABLE, "the storage failed") from None
        finally:
            if half is not None:
                self._let_go(half)

    def forget(self, replica: Replica) -> None:
        """The replica is no longer here: what came for it is deleted."""
        half = self._halves.get(replica.shard)
        if half is not None and half.replica is replica:
            self._throw_away(half)

    def close(self) -> None:
        """The node stops: nothing is written or deleted any more. What is left of halves goes at the next start."""
        self._closing = True
        for half in self._halves.values():
            if half.timer is not None:
                half.timer.cancel()

    # -- begin, take, let go -------------------------------------------------------------------------------------------

    async def _begin(self, replica: Replica, node: str, header: peer_pb2.SnapshotHeader) -> Half:
        """The half this stream goes on with, or a new one; nobody else brings it then."""
        message = from_wire(header.message)
        if message.kind != MessageKind.SNAPSHOT or message.configuration is None:
            raise TenfoldError(Code.INVALID_ARGUMENT, "message: not a snapshot's, or without its configuration")
        half = await self._idle_half(replica, node, header)
        if half is not None and half.installed is not None:
            return half
        core = replica.core
        if not core.wants_snapshot(message):
            replica.receive(message)  # the core answers with what it has
            raise Refused("not wanted", held=message.term >= core.term and message.index <= core.commit_index)
        if half is not None and not (half.replica is replica and half.same(node, header)):
            self._throw_away(half)
            half = None
        if half is None:
            half = self._halves[replica.shard] = Half(replica, node, header, message)
        half.free.clear()
        if half.timer is not None:
            half.timer.cancel()
            half.timer = None
        return half

    async def _idle_half(self, replica: Replica, node: str, header: peer_pb2.SnapshotHeader) -> Half | None:
        """What there is of a snapshot for that shard, once no other stream brings it. One that can no longer be installed,
        since its sender is deposed, makes room at once."""
        while (half := self._halves.get(replica.shard)) is not None:
            if half.installed is not None and not half.same(node, header):
                raise Refused("another snapshot is being installed")
            if half.installed is not None or half.free.is_set():
                break
            if half.replica is not replica or not replica.core.wants_snapshot(half.message):
                self._throw_away(half)
                continue
            if half.node != node:
                raise Refused(f"another snapshot arrives from {half.node}")
            try:  # its sender has given up that stream, which is about to be told
                async with asyncio.timeout(self._limits.snapshot_idle_ms / 1000):
                    await half.free.wait()
            except TimeoutError:
                raise Refused("an earlier stream has not ended") from None
        return half

    async def _take(self, half: Half, chunk: peer_pb2.SnapshotChunk) -> None:
        if half.over or not self._here(half.replica):
            raise Refused("nobody wants it any more")
        try:
            await half.take(chunk)
        except TenfoldError as error:
            raise Refused(error.message) from None

    def _let_go(self, half: Half) -> None:
        """The stream that brought it is over."""
        half.free.set()
        if half.over or half.installed is not None or self._closing:
            return
        half.timer = asyncio.get_running_loop().call_later(
            self._limits.snapshot_resume_ms / 1000, self._throw_away, half
        )

    def _throw_away(self, half: Half) -> None:
        if not half.over:
            half.over = True
            if half.timer is not None:
                half.timer.cancel()
            if self._halves.get(half.replica.shard) is half:
                del self._halves[half.replica.shard]
            try:
                half.sink.abort(delete=self._here(half.replica))  # else all of the shard goes, or is another replica's
            except StorageFailed as error:
                log.warning("snapshot not deleted", shard=half.replica.shard, error=str(error))

    def _here(self, replica: Replica) -> bool:
        return self._pump.replicas.get(replica.shard) is replica

    def fail_soon(self, error: StorageFailed) -> None:
        """Through the pump, so that the node stops as for any other failure of its storage."""

        async def job() -> None:
            raise error

        async def fail() -> None:
            with contextlib.suppress(StorageFailed):
                await self._pump.exclusively(job)

        self._start(fail, "storage failed")

    # -- install -------------------------------------------------------------------------------------------------------

    def _install_soon(self, half: Half) -> asyncio.Future[str]:
        half.replica.installing = True
        installed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        half.installed = installed
        self._start(lambda: self._install(half, installed), f"install-{half.replica.shard}")
        return installed

    async def _install(self, half: Half, installed: asyncio.Future[str]) -> None:
        replica, reason = half.replica, "no longer wanted"
        try:
            if await self._switch(half):
                await self._pump.exclusively(_nothing)  # the round in which the base moved is synced
                if self._here(replica):
                    half.sink.finish()
                self.installed += 1
                reason = ""
                log.info("snapshot installed", shard=replica.shard, index=half.message.index, chunks=half.next)
        except TenfoldError as error:
            reason = error.message
            log.info("snapshot not installed", shard=replica.shard, reason=reason)
        finally:
            replica.installing = False
            self._throw_away(half)  # without effect on what was switched to
            if not installed.done():
                installed.set_result(reason)

    async def _switch(self, half: Half) -> bool:
        """False when it is no longer wanted. Overloaded when the engine stalls for long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.snapshot_idle_ms / 1000
        switched = False

        async def job() -> None:
            nonlocal switched
            switched = await self._switch_now(half)

        while True:
            try:
                await self._pump.exclusively(job)
                return switched
            except TenfoldError:
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(STALL_RETRY_S)

    async def _switch_now(self, half: Half) -> bool:
        replica, message, time_ms = half.replica, half.message, half.header.time_ms
        if half.over or not self._here(replica) or not replica.core.wants_snapshot(message):
            return False
        if self._pump.batch_pending:
            raise TenfoldError(Code.OVERLOADED, "the state engine stalls")
        assert not replica.to_apply, "what is handed out is applied before a job runs"
        assert message.configuration is not None, "a snapshot tells who votes as of its index"
        half.sink.commit(message.index, message.log_term, time_ms, message.configuration)
        replica.applier.load(replica.state.view, time_ms)
        replica.core.step(message)  # at once: nothing that waits in the inbox may come between
        assert replica.core.commit_index == message.index, "a wanted snapshot is accepted"
        replica.touch()
        await self._state.flush()  # before the log's base moves, which the next round does
        return True


async def _done_within(seconds: float, future: asyncio.Future[Any]) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.shield(future)
    except TimeoutError:
        return False
    return True


async def _nothing() -> None:
    return None
