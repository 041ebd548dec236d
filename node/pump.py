"""Drives all replicas of a node in rounds: what waited since the last sync becomes one write, one frame per peer, one sync.

A round: (a) step every dirty core and append everything to the log in one gathered write; (b) sync; (c) while it runs,
apply what was committed, in bounded slices, one state batch for all shards. Before the sync only a leader's appends and
heartbeats leave (the core's `messages_now`); votes, acknowledgements and the rest follow it. After etcd's raft and
architecture section "way of a write".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Clock, DiskFull
from cluster.raft.messages import Message, MessageKind, Ready
from node.replica import Replica
from node.storage.log import Log, ShardRound
from node.storage.view import NodeState, StateBatch
from node.transport.peers import Peers

STALL_RETRY_S = 0.02
FULL_RETRY_S = 0.25

logger = structlog.get_logger("pump")


class Step:
    """What one core wants done in a round, and how far its log reaches once the round is synced."""

    __slots__ = ("last_index", "last_term", "ready", "replica")

    def __init__(self, replica: Replica, ready: Ready) -> None:
        self.replica = replica
        self.ready = ready
        log = replica.core.log
        self.last_index = log.last_index
        self.last_term = log.term_at(log.last_index) or 0


class Pump:
    """One per node. `on_failed` is called once when a write or a sync failed: the node must stop."""

    def __init__(
        self,
        *,
        log: Log,
        state: NodeState,
        batch: StateBatch,
        peers: Peers,
        clock: Clock,
        limits: Limits,
        send_snapshot: Callable[[Replica, Message], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self.replicas: dict[int, Replica] = {}
        self.rounds = 0
        self.synced_rounds = 0
        self.disk_full = False
        self._log = log
        self._state = state
        self._batch = batch
        self._peers = peers
        self._clock = clock
        self._limits = limits
        self._send_snapshot = send_snapshot
        self._on_failed = on_failed
        self._dirty: dict[Replica, None] = {}
        self._applying: dict[Replica, None] = {}
        self._jobs: list[tuple[Callable[[], Awaitable[None]], asyncio.Future[None]]] = []
        self._first_rounds: list[ShardRound] = []
        self._wake = asyncio.Event()
        self._sleeper: asyncio.Future[None] | None = None
        self._stopping = False
        self._ticked_at = clock.monotonic()

    def mark_dirty(self, replica: Replica) -> None:
        self._dirty[replica] = None
        self._wake.set()

    def write_first(self, shard_round: ShardRound) -> None:
        """Something recovery found must go into the log with the first round."""
        self._first_rounds.append(shard_round)
        self._wake.set()

    def remove(self, replica: Replica) -> None:
        """It is no longer here. Between two rounds only."""
        if self.replicas.get(replica.shard) is replica:
            del self.replicas[replica.shard]
        self._dirty.pop(replica, None)
        self._applying.pop(replica, None)
        self._first_rounds = [each for each in self._first_rounds if each.shard != replica.shard]

    async def write_log(self) -> bool:
        """Writes and syncs what the log has taken since the last round. Between two rounds only. False when the disk is full
        and the node stops."""
        if not await self._append([]):
            return False
        await self._log.sync()
        return True

    async def exclusively(self, job: Callable[[], Awaitable[None]]) -> None:
        """Runs `job` between two rounds, while no core is stepped and nothing is applied."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, done))
        self._wake.set()
        await done

    @property
    def jobs_waiting(self) -> int:
        return len(self._jobs)

    @property
    def batch_pending(self) -> bool:
        """Something is applied that the state engine has not taken yet."""
        return bool(self._batch)

    async def busy_within(self, seconds: float) -> None:
        """Returns after `seconds`, or at the next round if that comes first. For one caller."""
        loop = asyncio.get_running_loop()
        self._sleeper = loop.create_future()
        timer = loop.call_later(seconds, self._rouse)
        try:
            await self._sleeper
        finally:
            timer.cancel()

    def _rouse(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Until `stop`, or until storage fails."""
        try:
            while not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                await self._run_jobs()
                await self._round()
        except Exception as error:  # a failed write is never believed, an exception in apply is a bug: stop loudly
            self._on_failed(error)

    def advance_ticks(self) -> None:
        """Brings every core's time up to now; called by the ticker and before a lease is relied upon."""
        now = self._clock.monotonic()
        tick_s = self._limits.tick_ms / 1000
        ticks = int((now - self._ticked_at) / tick_s)
        if ticks > 0:
            self._ticked_at += ticks * tick_s
            try:
                for replica in self.replicas.values():
                    replica.tick(ticks, now)
            except Exception as error:  # whoever called: a broken law of a core stops the node
                self._on_failed(error)
                raise

    # -- one round -----------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        self.rounds += 1
        self._rouse()
        self.advance_ticks()  # ticks due come before the messages received after them: promises and leases rest on it
        work = self._step_dirty()
        rounds, self._first_rounds = self._first_rounds, []
        for step in work:
            if step.ready.must_sync:
                ready = step.ready
                rounds.append(
                    ShardRound(
                        step.replica.shard, step.replica.core.replica, ready.entries, ready.hard_state, ready.snapshot
                    )
                )
            self._send(step.replica, step.ready.messages_now)
        if not rounds:
            for step in work:
                self._send(step.replica, step.ready.messages_after)
            self._peers.flush()
            await self._apply_committed()
            return
        if not await self._append(rounds):
            return
        self._peers.flush()
        if self._applying:
            await self._sync_and_apply()
        else:
            await self._log.sync()
        self.synced_rounds += 1
        self._after_sync(work)

    async def _sync_and_apply(self) -> None:
        sync = asyncio.get_running_loop().create_task(self._log.sync(), name="sync")
        try:
            await asyncio.sleep(0)  # the sync starts, and the frames leave
            await self._apply_committed()
        finally:
            await sync

    async def _append(self, rounds: list[ShardRound]) -> bool:
        """Writes the round. On a full disk nothing was written: the same round is tried until there is room. Meanwhile
        no core is stepped and no heartbeat leaves, so others take over what is led here. False when told to stop."""
        while True:
            try:
                self._log.append(rounds)
            except DiskFull as error:
                if not self.disk_full:
                    logger.error("disk full: waiting for room", error=str(error))
                self._set_disk_full(True)
                await asyncio.sleep(FULL_RETRY_S)
                if self._stopping:
                    return False
            else:
                if self.disk_full:
                    logger.info("the disk has room again")
                    self._set_disk_full(False)
                return True

    def _set_disk_full(self, full: bool) -> None:
        self.disk_full = self._peers.mute = full
        if full:
            for replica in self.replicas.values():
                replica.refuse_waiting(Code.DISK_FULL)

    def _step_dirty(self) -> list[Step]:
        dirty, self._dirty = self._dirty, {}
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        work: list[Step] = []
        for replica in dirty:
            replica.dirty = False
            ready = replica.step(now, wall_ms)
            if ready is not None:
                work.append(Step(replica, ready))
                if replica.to_apply:
                    self._applying[replica] = None
        return work

    def _after_sync(self, work: list[Step]) -> None:
        for step in work:
            core = step.replica.core
            if step.ready.must_sync:
                core.persisted(step.last_index, step.last_term)
            self._send(step.replica, step.ready.messages_after)
            if core.has_ready():
                step.replica.touch()
        self._peers.flush()

    def _send(self, replica: Replica, messages: list[Message]) -> None:
        for message in messages:
            if message.kind == MessageKind.SNAPSHOT:
                self._send_snapshot(replica, message)
            elif (node := replica.node_of.get(message.receiver)) is not None:  # else one map is older than the other
                self._peers.send(node, replica.shard, [message])

    async def _apply_committed(self) -> None:
        """Applies all that is committed, in slices, so that the loop stays responsive; each slice is one state batch.
        While the engine stalls nothing more is applied, and Raft goes on."""
        while True:
            if self._batch and not self._state.write_batch(self._batch):
                asyncio.get_running_loop().call_later(STALL_RETRY_S, self._wake.set)
                return
            if not self._applying:
                return
            self._apply_slice()
            if self._applying:
                await asyncio.sleep(0)

    def _apply_slice(self) -> None:
        now = self._clock.monotonic()
        deadline = now + self._limits.apply_slice_ms / 1000
        while self._applying:
            replica = next(iter(self._applying))
            to_apply = replica.to_apply
            while to_apply:
                replica.apply(to_apply.popleft(), now)
                now = self._clock.monotonic()
                if now >= deadline:
                    break
            replica.applied_some()
            if replica.core.has_ready():
                replica.touch()
            if not to_apply:
                del self._applying[replica]
            if now >= deadline:
                return

    async def _run_jobs(self) -> None:
        jobs, self._jobs = self._jobs, []
        for job, done in jobs:
            try:
                await job()
            except TenfoldError as error:  # the caller decides; the pump goes on
                if not done.done():
                    done.set_exception(error)
            except Exception as error:  # a failed write or a broken law: the node stops
                if not done.done():
                    done.set_exception(error)
                raise
            else:
                if not done.done():  # whoever asked may be gone
                    done.set_result(None)
