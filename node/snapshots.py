"""Snapshots between nodes: frozen and sent by a leader, over broken streams if need be; received by `installs`.

The state is frozen between two rounds, when all that is applied is in the engine, and stays frozen while it is sent. When the
stream breaks, the next attempt goes on where the receiver stands; that ends after `snapshot_resume_ms` without progress,
when the leader is deposed, and when the node stops. The frozen state is let go on every one of these ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ChannelBroken, Spawn, StorageFailed
from cluster.raft.messages import Message
from cluster.raft.progress import ProgressState
from cluster.types import Role
from node.installs import Installs, Work
from node.pump import Pump
from node.replica import Replica
from node.storage.view import NodeState, SnapshotSource
from node.transport.codec import to_wire
from node.transport.peers import Peers
from node.transport.snapshot_stream import Arriving
from proto.gen import peer_pb2

PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Before each further attempt; the last repeats."""

AGAIN = frozenset({Code.UNAVAILABLE, Code.OVERLOADED, Code.SHUTTING_DOWN})
"""Of the receiver's errors, those that a further attempt may get over."""

log = structlog.get_logger("snapshots")


class Sending:
    """One frozen state on its way to one follower, in chunks as `SnapshotSource` gives them, as long as `check` lets it."""

    def __init__(self, header: peer_pb2.SnapshotHeader, source: SnapshotSource, check: Callable[[], None]) -> None:
        self.header = header
        self.source = source
        self.check = check
        self.seek = source.seek
        self.settle = source.settle

    @property
    def number(self) -> int:
        return self.source.number

    @property
    def digest(self) -> int:
        return self.source.digest

    async def read(self) -> bytes | None:
        self.check()
        return await self.source.read()


class Snapshots:
    """Sends what a leader's core asks for. Bounded: `snapshots_sending_max` attempts at a time, and as many that broke off
    and wait."""

    def __init__(self, pump: Pump, peers: Peers, state: NodeState, spawn: Spawn, limits: Limits) -> None:
        self.sent = 0
        self.installs = Installs(pump, state, self._start, limits)
        self._pump = pump
        self._peers = peers
        self._spawn = spawn
        self._limits = limits
        self._active = 0
        self._open = 0
        self._frozen = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closing = False
        self._ended = asyncio.Event()

    @property
    def installed(self) -> int:
        return self.installs.installed

    def receive(
        self, replica: Replica, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        return self.installs.receive(replica, node, header, chunks)

    def forget(self, replica: Replica) -> None:
        """The replica is taken from this node, or quarantined; to be called before its state is deleted."""
        self.installs.forget(replica)

    async def close(self) -> None:
        """Before the storage is closed: ends every sending and lets go what is frozen. Nothing is installed any more."""
        self._closing = True
        self.installs.close()
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            self._ended.clear()
            await self._ended.wait()

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, replica: Replica, message: Message) -> None:
        """Called by the pump in a round; the core asks again later when this one was refused or failed."""
        most = self._limits.snapshots_sending_max
        node = replica.node_of.get(message.receiver)
        if self._active >= most or self._open >= 2 * most or node is None:
            self._finished(replica, message, ok=False)
            return
        self._active += 1
        self._open += 1
        self._start(lambda: self._send(replica, message, node), f"snapshot-{replica.shard}")

    async def _send(self, replica: Replica, message: Message, node: str) -> None:
        """`node` as it was when asked: by now the map may have dropped the receiver."""
        ok = False
        try:
            sending = await self._freeze(replica, message)
            try:
                reply = await self._deliver(sending, node)
            finally:
                sending.source.close()
            ok = reply.accepted
            if ok:
                self.sent += 1
            log.info("snapshot sent", shard=replica.shard, to=node, index=message.index, ok=ok, reason=reply.reason)
        except (ChannelBroken, TimeoutError, TenfoldError) as error:
            log.info("snapshot not sent", shard=replica.shard, to=node, reason=str(error))
        except StorageFailed as error:
            self.installs.fail_soon(error)
        finally:
            self._active -= 1
            self._open -= 1
            self._finished(replica, message, ok=ok)

    async def _freeze(self, replica: Replica, message: Message) -> Sending:
        """The state between two rounds, when all that is applied is in the engine; `message` is set to that point."""
        frozen: list[Sending] = []
        wanted = True

        async def job() -> None:
            if not wanted:
                return
            if self._pump.batch_pending:
                raise TenfoldError(Code.OVERLOADED, "the state engine stalls")
            self._check_leader(replica, message)
            point = replica.core.snapshot_point()
            message.index, message.log_term, message.configuration = point.index, point.term, point.configuration
            header = peer_pb2.SnapshotHeader(
                message=to_wire(replica.shard, message),
                time_ms=replica.applier.time_ms,
                id=self._next_id(),
            )
            frozen.append(Sending(header, replica.state.snapshot(), lambda: self._check(replica, message)))

        try:
            await self._pump.exclusively(job)
        except asyncio.CancelledError:
            wanted = False
            for sending in frozen:
                sending.source.close()
            raise
        return frozen[0]

    def _check_leader(self, replica: Replica, message: Message) -> None:
        """TenfoldError when the snapshot was asked for in a term that has passed, or the replica is gone."""
        core = replica.core
        if self._pump.replicas.get(replica.shard) is not replica:
            raise TenfoldError(Code.WRONG_SHARD, "the replica is no longer here")
        if core.role is not Role.LEADER or core.term != message.term:
            raise TenfoldError(Code.NOT_LEADER)

    def _check(self, replica: Replica, message: Message) -> None:
        """TenfoldError also when the follower is gone, or got what it lacked in another way."""
        self._check_leader(replica, message)
        progress = replica.core.progress.get(message.receiver)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            raise TenfoldError(Code.WRONG_SHARD, "the follower does not wait for it any more")

    def _next_id(self) -> int:
        """No other snapshot of this node has it that a receiver may still hold the half of, whatever start it is from."""
        self._frozen += 1
        return (self._peers.identity.incarnation << 20 | self._frozen & 0xFFFFF) & 0xFFFF_FFFF_FFFF_FFFF

    async def _deliver(self, sending: Sending, node: str) -> peer_pb2.SnapshotReply:
        """Attempt after attempt, as long as one of them gets on within `snapshot_resume_ms`."""
        loop = asyncio.get_running_loop()
        patience_s = self._limits.snapshot_resume_ms / 1000
        give_up_at, failures = loop.time() + patience_s, 0
        while True:
            stood = sending.source.settled
            try:
                return await self._peers.send_snapshot(node, sending.header, sending)
            except (ChannelBroken, TimeoutError, TenfoldError) as error:
                if isinstance(error, TenfoldError) and error.code not in AGAIN:
                    raise
                problem = error
            if sending.source.settled != stood:
                give_up_at, failures = loop.time() + patience_s, 0
            while True:
                pause_s = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                failures += 1
                if loop.time() + pause_s > give_up_at:
                    raise problem
                await self._pause(pause_s)
                sending.check()
                if self._active <= self._limits.snapshots_sending_max:
                    break
            log.info("snapshot goes on", to=node, chunk=sending.source.settled, after=str(problem))

    async def _pause(self, seconds: float) -> None:
        """Leaves the place to another sending meanwhile."""
        self._active -= 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._active += 1

    def _finished(self, replica: Replica, message: Message, *, ok: bool) -> None:
        if message.receiver in replica.core.progress:
            replica.core.snapshot_finished(message.receiver, message.index, ok)
        replica.touch()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _start(self, work: Work, name: str) -> None:
        self._spawn(self._tracked(work), name)

    async def _tracked(self, work: Work) -> None:
        """What `close` ends. Made when it begins: a task may be cancelled before that."""
        if self._closing:
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        try:
            await work()
        finally:
            del self._tasks[task]
            self._ended.set()
