"""Builds a node out of its ports. The process entry and the simulator build the very same `Node`.

Order of birth: identity and incarnation, state, log (told what the state already holds), map, replicas, server, peers,
background work. Order of death: no new work, leaderships handed over, answers given, streams closed, storage closed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import structlog

from cluster.limits import Limits
from cluster.ports import Clock, Dial, Disk, Handlers, Random, Spawn, State
from cluster.ring.shard_map import first_map
from cluster.types import Role
from node.capabilities import discover
from node.cluster_map import PATH as MAP_PATH
from node.cluster_map import ClusterMap
from node.config import NodeConfig
from node.peer_events import PeerEvents
from node.pump import Pump
from node.replica import Replica
from node.services.front import NodeService
from node.shards import Shards
from node.snapshots import Snapshots
from node.storage.identity import Identity, Sealed
from node.storage.log import Log
from node.storage.view import NodeState, StateBatch
from node.transport.peer_service import PeerService
from node.transport.peers import Peers
from node.upkeep import Upkeep
from proto.gen import node_pb2

INCARNATION_PATH = "incarnation"
STOP_GRACE_S = 2.0

log = structlog.get_logger("node")


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


class Node:
    """One node. `start` returns when it serves; `stopped` is resolved when it has stopped, with the failure if any."""

    def __init__(self, config: NodeConfig, ports: Ports, limits: Limits) -> None:
        self.config = config
        self.ports = ports
        self.limits = limits
        self.address = config.address
        self.incarnation = 0
        self.stopped: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        """OSError when the address is taken; ForeignFile, StorageFailed when the directory is not ours or not readable."""
        ports, limits, config = self.ports, self.limits, self.config
        identity = Identity(config.cluster, config.node, ports.boot_id)
        kept = Sealed(ports.disk, INCARNATION_PATH)
        lived = kept.read(identity)
        self.incarnation = int(lived or b"0") + 1
        members = [(each.node, each.address, each.zone) for each in config.members]
        first = first_map(config.cluster, members, config.shards, config.replication_factor)
        self.map = ClusterMap(first, Sealed(ports.disk, MAP_PATH), identity)
        self._open_storage = ports.open_state()
        self.state = NodeState(self._open_storage)
        self.batch = StateBatch()
        self.log, recovered = await Log.open(
            ports.disk,
            cluster_id=config.cluster,
            node=config.node,
            boot_id=ports.boot_id,
            limits=limits,
            discard_at_or_below=self._applied_indexes(),
        )
        self.log.release(self.state.durable_applied)  # else every restart would leave a small segment behind
        self._assemble()
        self.shards.open_all(recovered, reborn=lived is not None or config.born)
        if lived is None:  # the shards' births are durable before this node may be said to have lived
            self.log.append([])
            await self.log.sync()
        await kept.write(identity, str(self.incarnation).encode())
        server = ports.serve([("Node", self.service), ("Peer", self.peer_service)], config.address)
        self.server = server
        port = await server.start()
        self.address = f"{config.address.rpartition(':')[0]}:{port}"
        self.peers.identity.address = self.address
        self.map.heard(config.node, self.address)
        self._run()

    def _applied_indexes(self) -> dict[int, tuple[int, int]]:
        kept = self.limits.log_entries_kept_max
        applied = self.state.durable_applied.items()
        return {shard: (replica, index - kept) for shard, (replica, index) in applied if index > kept}

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
            limits=limits,
            random=ports.random,
            pump=self.pump,
            log=self.log,
            state=self.state,
            batch=self.batch,
        )
        self.snapshots = Snapshots(self.pump, self.peers, self.state, ports.spawn, limits)
        self.upkeep = Upkeep(
            map=self.map,
            shards=self.shards,
            pump=self.pump,
            peers=self.peers,
            events=self.events,
            log_file=self.log,
            state=self.state,
            dial=ports.dial,
            limits=limits,
        )
        self.events.connect(self.shards, self.snapshots, self.upkeep.fetch_map)
        self.peer_service = PeerService(self.peers)
        self.service = NodeService(
            shards=self.shards,
            map=self.map,
            pump=self.pump,
            services=services,
            clock=ports.clock,
            limits=limits,
            status=self.status,
            stop=self.begin_stop,
        )

    def _run(self) -> None:
        for work, name in (
            (self.pump.run(), "pump"),
            (self.upkeep.tick(), "tick"),
            (self.upkeep.flush(), "flush"),
            (self.upkeep.follow_map(), "follow map"),
            (self.upkeep.keep_meta(), "keep meta"),
        ):
            task = asyncio.get_running_loop().create_task(work, name=name)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)
        for node, address in self.map.addresses().items():
            self.peers.set_address(node, address)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.fail(task.exception())

    # -- the end -------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException | None) -> None:
        """A failed write or a bug: nothing more is acknowledged; the node stops without tidying what it cannot trust."""
        log.error("node failed", node=self.config.node, error=repr(error))
        if not self.stopped.done():
            self.stopped.set_result(error)

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
            await self._hand_over()
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

    async def _hand_over(self) -> None:
        """Transfers each led shard to its most advanced follower; a shard that nobody can take is left to an election."""
        deadline = self.ports.clock.monotonic() + STOP_GRACE_S
        for replica in self.shards.led():
            core = replica.core
            up = self.peers.up()
            takers = [peer for peer in core.progress if peer != core.replica and replica.node_of[peer] in up]
            if takers:
                core.transfer_leadership(max(takers, key=lambda peer: core.progress[peer].match))
                replica.touch()
        while self.ports.clock.monotonic() < deadline and any(r.core.role is Role.LEADER for r in self._handing_over()):
            await asyncio.sleep(self.limits.tick_ms / 1000)

    def _handing_over(self) -> list[Replica]:
        return [replica for replica in self.shards.replicas.values() if replica.core.transferring]

    async def close_storage(self) -> None:
        for task in self._tasks:
            if task.get_name() != "pump":
                task.cancel()
        self.pump.stop()
        for replica in self.shards.replicas.values():
            replica.shut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.state.flush()
        await self.log.close()
        self._open_storage.close()

    async def abandon(self) -> None:
        """Ends every task and connection and tidies nothing, as a crash would; for tests and the simulator."""
        await self.snapshots.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop(0)
        await self.peers.close()

    # -- status --------------------------------------------------------------------------------------------------------

    def status(self, *, digests: bool = False) -> node_pb2.StatusReply:
        process = psutil.Process()
        times = process.cpu_times()
        reply = node_pb2.StatusReply(
            node=self.config.node,
            incarnation=self.incarnation,
            address=self.address,
            epoch=self.map.epoch,
            pid=os.getpid(),
            replicas=self.shards.status(digests=digests),
            peers_up=self.peers.up(),
            log_bytes=self.log.disk_bytes,
            resident_bytes=process.memory_info().rss,
            cpu_seconds=times.user + times.system,
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
