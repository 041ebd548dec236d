"""Snapshots between nodes: streamed in chunks on the bulk channel, installed under a new generation.

Install (architecture section "storage"): chunks go under a new generation prefix; one batch switches generation and
applied index; flush; then the log's base moves; then the old generation is deleted. A crash between any two of these
leaves a replica that recovery brings to one side or the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ChannelBroken, Spawn
from cluster.raft.messages import Message, MessageKind
from cluster.types import Role
from node.pump import Pump
from node.replica import Replica
from node.storage.view import NodeState, SnapshotSink, SnapshotSource
from node.transport.codec import from_wire, to_wire
from node.transport.peers import Peers
from proto.gen import peer_pb2

log = structlog.get_logger("snapshots")


class Snapshots:
    """Sends what a leader's core asks for and installs what arrives. Bounded: `snapshots_sending_max` at a time."""

    def __init__(self, pump: Pump, peers: Peers, state: NodeState, spawn: Spawn, limits: Limits) -> None:
        self.sent = 0
        self.installed = 0
        self._pump = pump
        self._peers = peers
        self._state = state
        self._spawn = spawn
        self._limits = limits
        self._sending = 0

    # -- the leader's side ---------------------------------------------------------------------------------------------

    def send(self, replica: Replica, message: Message) -> None:
        """Called by the pump in a round; the core asks again later when this one was refused or failed."""
        if self._sending >= self._limits.snapshots_sending_max:
            self._finished(replica, message, ok=False)
            return
        self._sending += 1
        self._spawn(self._send(replica, message), f"snapshot-{replica.shard}")

    async def _send(self, replica: Replica, message: Message) -> None:
        ok = False
        node = replica.node_of[message.receiver]
        try:
            header, chunks = await self._freeze(replica, message)
            try:
                reply = await self._peers.send_snapshot(node, header, chunks.chunks())
            finally:
                chunks.close()
            ok = reply.accepted
            if ok:
                self.sent += 1
            log.info("snapshot sent", shard=replica.shard, to=node, index=message.index, ok=ok, reason=reply.reason)
        except (ChannelBroken, TimeoutError, TenfoldError) as error:
            log.info("snapshot not sent", shard=replica.shard, to=node, reason=str(error))
        finally:
            self._sending -= 1
            self._finished(replica, message, ok=ok)

    async def _freeze(self, replica: Replica, message: Message) -> tuple[peer_pb2.SnapshotHeader, SnapshotSource]:
        """The state between two rounds, when all that is applied is in the engine; `message` is set to that point."""
        frozen: list[tuple[peer_pb2.SnapshotHeader, SnapshotSource]] = []

        async def job() -> None:
            if self._pump.batch_pending:
                raise TenfoldError(Code.OVERLOADED, "the state engine stalls")
            if replica.core.role is not Role.LEADER or replica.core.term != message.term:
                raise TenfoldError(Code.NOT_LEADER)  # it was asked for in a term that has passed
            point = replica.core.snapshot_point()
            message.index, message.log_term, message.configuration = point.index, point.term, point.configuration
            header = peer_pb2.SnapshotHeader(
                message=to_wire(replica.shard, message),
                time_ms=replica.applier.time_ms,
            )
            frozen.append((header, replica.state.snapshot()))

        await self._pump.exclusively(job)
        return frozen[0]

    def _finished(self, replica: Replica, message: Message, *, ok: bool) -> None:
        replica.core.snapshot_finished(message.receiver, message.index, ok)
        replica.touch()

    # -- the follower's side -------------------------------------------------------------------------------------------

    async def receive(
        self, replica: Replica, header: peer_pb2.SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> peer_pb2.SnapshotReply:
        """Takes the chunks of one snapshot; accepted once it is installed and the log's base has moved."""
        message = from_wire(header.message)
        assert message.kind == MessageKind.SNAPSHOT
        if replica.installing:
            return peer_pb2.SnapshotReply(accepted=False, reason="another snapshot is being installed")
        if not replica.core.wants_snapshot(message):
            replica.receive(message)  # the core answers with what it has
            return peer_pb2.SnapshotReply(accepted=False, reason="not wanted")
        replica.installing = True
        sink = replica.state.begin_install()
        try:
            async for pairs in chunks:
                await sink.add(pairs)
        except BaseException:
            sink.abort()
            replica.installing = False
            raise
        # From here on the install is the node's own affair: the sender may die, and this call with it.
        installed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._spawn(self._install(replica, sink, header, message, installed), f"install-{replica.shard}")
        accepted = await asyncio.shield(installed)
        return peer_pb2.SnapshotReply(accepted=accepted, reason="" if accepted else "no longer wanted")

    async def _install(
        self,
        replica: Replica,
        sink: SnapshotSink,
        header: peer_pb2.SnapshotHeader,
        message: Message,
        installed: asyncio.Future[bool],
    ) -> None:
        done = False

        async def job() -> None:
            nonlocal done
            if self._pump.batch_pending or not replica.core.wants_snapshot(message):
                sink.abort()
                return
            assert not replica.to_apply, "what is handed out is applied before a job runs"
            sink.commit(message.index, message.log_term, header.time_ms)
            replica.applier.load(replica.state.view, header.time_ms)
            replica.core.step(message)  # at once: nothing that waits in the inbox may come between
            assert replica.core.commit_index == message.index, "a wanted snapshot is accepted"
            replica.touch()
            await self._state.flush()  # before the log's base moves, which the next round does
            done = True

        try:
            await self._pump.exclusively(job)
            if done:
                await self._pump.exclusively(_nothing)  # the round in which the base moved is synced
                sink.finish()
                self.installed += 1
                log.info("snapshot installed", shard=replica.shard, index=message.index)
        except TenfoldError as error:
            log.info("snapshot not installed", shard=replica.shard, reason=error.message)
        finally:
            replica.installing = False
            if not installed.done():
                installed.set_result(done)


async def _nothing() -> None:
    return None
