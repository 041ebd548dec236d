"""Builds a node out of its ports. The process entry and the simulator build the very same `Node`.

Order of birth: identity and incarnation, what was lost, map, state, log (told what the state already holds), replicas, server,
peers, background work. Order of death: leaderships handed over, no new work, answers given, streams closed, storage closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from cluster.errors import Code
from cluster.limits import Limits
from cluster.ports import Clock, Dial, Disk, Handlers, Random, Spawn, State
from node.arrival import PATH as LOSS_PATH
from node.arrival import Arrival, Loss
from node.capabilities import discover
from node.cluster_map import PATH as MAP_PATH
from node.cluster_map import ClusterMap
from node.config import NodeConfig
from node.driver import Driver
from node.hand_over import hand_over
from node.members import Members
from node.meta_leader import MetaLeader
from node.opening import Opener
from node.peer_events import PeerEvents
from node.pump import Pump
from node.reconcile import Reconciler
from node.services.admin import AdminService
from node.services.front import NodeService
from node.shards import Shards
from node.snapshots import Snapshots
from node.storage.identity import Identity, Sealed
from node.storage.log import Log
from node.storage.segment import segment_numbers
from node.storage.view import NodeState, StateBatch
from node.transport.peer_service import PeerService
from node.transport.peers import Peers
from node.upkeep import Upkeep
from proto.gen import node_pb2

INCARNATION_PATH = "incarnation"
EPOCH_SHIFT = 16
"""Of an incarnation: above it the epoch of the last loss, below it the starts since."""
STOP_GRACE_S = 2.0

log = structlog.get_logger("node")


class ProcessFigures(NamedTuple):
    """What the operating system says of the process a node lives in. Where there is none, nothing."""

    pid: int = 0
    resident_bytes: int = 0
    cpu_seconds: float = 0.0


@dataclass(slots=True)
class Ports:
    """What differs between a process and the simulator."""

    disk: Disk
    open_state: Callable[[], State]
    dial: Dial
    serve: Callable[[Handlers, str], Any]  # node.transport.server.Server or its twin
    clock: Clock
    random: Random
    spawn: Spawn
    boot_id: str
    process: Callable[[], ProcessFigures] = ProcessFigures


class Node:
    """One node. `start` returns when it serves; `stopped` is resolved when it has stopped, with the failure if any."""

    def __init__(self, config: NodeConfig, ports: Ports, limits: Limits) -> None:
        self.config = config
        self.ports = ports
        self.limits = config.limits(limits)
        self.address = config.address
        self.incarnation = 0
        self.stopped: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        """OSError when the address is taken; ForeignFile, StorageFailed when the directory is not ours or not readable."""
        ports, limits, config = self.ports, self.limits, self.config
        identity = Identity(config.cluster, config.node, ports.boot_id)
        self._identity = identity
        self._kept_incarnation = kept = Sealed(ports.disk, INCARNATION_PATH)
        lived = kept.read(identity)
        self.incarnation = int(lived or b"0") + 1
        self._birth = config.first_map()
        # One that joins may bear a member's name, and that one's disk is not here.
        self._newborn = lived is None and not config.born and not config.join
        self.map = ClusterMap(self._birth, Sealed(ports.disk, MAP_PATH), identity)
        self.loss = Loss(Sealed(ports.disk, LOSS_PATH), identity)
        if not self._newborn and (lived is None or not segment_numbers(ports.disk)):
            await self.loss.note()  # before a new log begins, which would look intact
        self._open_storage = ports.open_state()
        self.state = NodeState(self._open_storage)
        self.batch = StateBatch()
        self.log, recovered = await Log.open(
            ports.disk,
            cluster_id=config.cluster,
            node=config.node,
            boot_id=ports.boot_id,
            limits=limits,
            discard_at_or_below={
                shard: (replica, index - limits.log_entries_kept_max)
                for shard, (replica, index) in self.state.durable_applied.items()
                if index > limits.log_entries_kept_max
            },
        )
        if self.log.suspect:
            if self.map.damaged:
                await self.loss.note()
            self.loss.suspect(self.map.kept_epoch)
        self.log.release(self.state.durable_applied)  # else every restart would leave a small segment behind
        self._assemble()
        await self.shards.open_all(recovered)
        await kept.write(
            identity, str(self.incarnation).encode()
        )  # from here on it has lived, and its births are durable
        server = ports.serve([("Node", self.service), ("Peer", self.peer_service)], config.address)
        self.server = server
        port = await server.start()
        self.address = f"{config.address.rpartition(':')[0]}:{port}"
        self.peers.identity.address = self.address
        self.map.heard(config.node, self.address)
        self._run()

    def _assemble(self) -> None:
        ports, limits, config = self.ports, self.limits, self.config
        services = discover(limits)
        self.events = PeerEvents(ports.clock, limits)
        self.peers = Peers(
            config.node,
            config.cluster,
            self.incarnation,
            config.address,
            ports.dial,
            ports.spawn,
            ports.clock,
            limits,
            self.events,
        )
        self.pump = Pump(
            log=self.log,
            state=self.state,
            batch=self.batch,
            peers=self.peers,
            clock=ports.clock,
            limits=limits,
            send_snapshot=lambda replica, message: self.snapshots.send(replica, message),
            on_failed=self.fail,
        )
        self.shards = Shards(
            node=config.node,
            map=self.map,
            services=services,
            birth=self._birth,
            newborn=self._newborn,
            loss=self.loss,
            opener=Opener(services, self.state, self.batch, self.pump, ports.random, limits),
            pump=self.pump,
            log=self.log,
            state=self.state,
        )
        self.snapshots = Snapshots(self.pump, self.peers, self.state, ports.spawn, limits)
        self.meta = MetaLeader(self.shards, self.map, self.peers)
        self.upkeep = Upkeep(
            map=self.map,
            meta=self.meta,
            shards=self.shards,
            pump=self.pump,
            peers=self.peers,
            events=self.events,
            reconciler=Reconciler(self.shards, self.map, limits),
            clock=ports.clock,
            log_file=self.log,
            state=self.state,
            dial=ports.dial,
            limits=limits,
        )
        self.shards.on_closed.append(self.snapshots.forget)
        self.events.connect(self.shards, self.snapshots, self.upkeep.fetch_map)
        self._assemble_meta()
        self.peer_service = PeerService(self.peers)
        self.service = NodeService(
            shards=self.shards,
            map=self.map,
            pump=self.pump,
            services=services,
            clock=ports.clock,
            limits=limits,
            admin=AdminService(self.meta, self.driver),
            status=self.status,
            stop=self.begin_stop,
        )

    def _assemble_meta(self) -> None:
        """What acts only while this node leads meta."""
        ports, limits = self.ports, self.limits
        self.driver = Driver(
            meta=self.meta,
            map=self.map,
            shards=self.shards,
            peers=self.peers,
            told=self.events.told,
            own_status=self.status,
            dial=ports.dial,
            clock=ports.clock,
            limits=limits,
        )
        self.members = Members(
            meta=self.meta,
            peers=self.peers,
            shards=self.shards,
            told=self.events.told,
            wake=self.driver.wake,
            clock=ports.clock,
            limits=limits,
        )

    def _run(self) -> None:
        for work, name in (
            (self.pump.run(), "pump"),
            (self.upkeep.tick(), "tick"),
            (self.upkeep.flush(), "flush"),
            (self.state.watch_over(self.limits), "watch over the state"),
            (self.upkeep.fetch_maps(), "fetch maps"),
            (self.upkeep.follow(), "follow map"),
            (self.upkeep.keep_meta(), "keep meta"),
            (self.members.run(), "members"),
            (self.driver.run(), "driver"),
            (self._arrive(), "arrival"),
        ):
            task = asyncio.get_running_loop().create_task(work, name=name)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)
        self.upkeep.tell()
        self.upkeep.follow_members()

    async def _arrive(self) -> None:
        """Asks the cluster in, or for what was lost; nothing else waits for it."""
        arrival = Arrival(self.config, self.map, self.loss, self.ports.dial, lambda: self.address, self._count_from)
        await arrival.run()
        self.upkeep.tell()
        self.upkeep.follow_again()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.fail(task.exception())

    async def _count_from(self, epoch: int) -> None:
        """With the disk the count of incarnations was lost. It goes on above whatever a peer may remember, since no two losses
        are told the same epoch. Only while it is told: an old copy of the disk is later refused by its incarnation."""
        counted = max(self.incarnation, epoch << EPOCH_SHIFT)
        await self._kept_incarnation.write(self._identity, str(counted).encode())
        self.incarnation = self.peers.identity.incarnation = counted

    # -- the end -------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException | None) -> None:
        """A failed write or a bug: nothing more is acknowledged; the node stops without tidying what it cannot trust."""
        log.error("node failed", node=self.config.node, error=repr(error))
        if not self.stopped.done():
            self.stopped.set_result(error)

    @property
    def stopping(self) -> bool:
        """It was told to."""
        return self._stopping

    def begin_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self.ports.spawn(self.stop(), "stop")

    async def stop(self) -> None:
        """Hands leaderships over, drains, closes. Idempotent."""
        self._stopping = True
        if self.stopped.done():
            return
        failure: BaseException | None = None
        try:
            self.upkeep.stopping = True
            self.upkeep.tell()
            await hand_over(self.shards, self.peers, self.events, self.ports.clock, self.limits)
            self.service.draining = True
            for replica in self.shards.replicas.values():
                replica.wake_watchers()
            await self.server.stop(STOP_GRACE_S)
            await self.snapshots.close()
            await self.peers.close()
            await self.close_storage()
        except Exception as error:  # say, the directory is gone: nothing acknowledged rests on a tidy end
            failure = error
        if not self.stopped.done():
            self.stopped.set_result(failure)

    async def close_storage(self) -> None:
        for task in self._tasks:
            if task.get_name() != "pump":
                task.cancel()
        self.pump.stop()
        for replica in self.shards.replicas.values():
            replica.close(Code.SHUTTING_DOWN)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.state.flush()
        await self.log.close()
        self._open_storage.close()

    def halt(self) -> None:
        """No round goes on and none begins: nothing more is acknowledged."""
        for task in self._tasks:
            task.cancel()

    async def abandon(self) -> None:
        """Ends every task and connection and tidies nothing, as a crash would; for tests and the simulator."""
        self.halt()
        await self.snapshots.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop(0)
        await self.peers.close()

    # -- status --------------------------------------------------------------------------------------------------------

    def status(self, *, digests: bool = False) -> node_pb2.StatusReply:
        process = self.ports.process()
        reply = node_pb2.StatusReply(
            node=self.config.node,
            incarnation=self.incarnation,
            address=self.address,
            epoch=self.map.epoch,
            pid=process.pid,
            replicas=self.shards.status(digests=digests),
            peers_up=self.peers.up(),
            log_bytes=self.log.disk_bytes,
            resident_bytes=process.resident_bytes,
            cpu_seconds=process.cpu_seconds,
        )
        counters = {
            "rounds": self.pump.rounds,
            "synced_rounds": self.pump.synced_rounds,
            "snapshots_sent": self.snapshots.sent,
            "snapshots_installed": self.snapshots.installed,
            "inbox_dropped": sum(replica.dropped_messages for replica in self.shards.replicas.values()),
            **self.peers.counters(),
        }
        for name, count in counters.items():
            reply.counters[name] = count
        return reply
