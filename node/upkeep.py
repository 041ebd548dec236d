"""The node's background work: ticks, flushing state so that log segments can go, following the map and keeping meta's true."""

from __future__ import annotations

import asyncio

import structlog

from cluster.errors import TenfoldError
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Clock, Dial
from node.cluster_map import ClusterMap
from node.meta_leader import MetaLeader
from node.peer_events import PeerEvents
from node.pump import Pump
from node.reconcile import Reconciler
from node.shards import Shards
from node.storage.log import Log
from node.storage.view import NodeState
from node.transport.peers import Peers
from proto.gen import meta_pb2, node_pb2

log = structlog.get_logger("upkeep")


class Upkeep:
    def __init__(
        self,
        *,
        map: ClusterMap,
        meta: MetaLeader,
        shards: Shards,
        pump: Pump,
        peers: Peers,
        events: PeerEvents,
        reconciler: Reconciler,
        clock: Clock,
        log_file: Log,
        state: NodeState,
        dial: Dial,
        limits: Limits,
    ) -> None:
        self._map = map
        self._meta = meta
        self._shards = shards
        self._pump = pump
        self._peers = peers
        self._events = events
        self._reconciler = reconciler
        self._clock = clock
        self.stopping = False
        self._log = log_file
        self._state = state
        self._dial = dial
        self._limits = limits
        self._flushed_at_bytes = log_file.total_bytes
        self._fetch_from: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
        self._addresses: dict[str, str] = {}  # of the members, as the map had them that was followed last
        self._followed: meta_pb2.ShardMap | None = None  # None: again
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def tick(self) -> None:
        """For ever: advances time, tells the heartbeats what to say, raises suspicions. While every shard is silent it
        comes round only as often as the nodes' heartbeats do; a round of the pump wakes it."""
        limits = self._limits
        while True:
            awake = any(not replica.core.silent for replica in self._shards.replicas.values())
            if awake:
                await asyncio.sleep(limits.tick_ms / 1000)
            else:
                await self._pump.busy_within(limits.node_heartbeat_ms / 1000)
            self._pump.advance_ticks()
            self.tell()
            self._events.suspect({node: self._peers.heard_s(node) for node in self._peers.members()})
            if not self.stopping:
                up = {node for node in self._peers.up() if not self._events.stopping(node)}
                self._reconciler.look(self._clock.monotonic(), up | {self._shards.node})

    def tell(self) -> None:
        """What the heartbeats say from now on."""
        self._peers.set_heartbeat(
            len(self._shards.led()),
            self._map.epoch,
            quarantined=len(self._shards.quarantined),
            stopping=self.stopping,
            lost=self._shards.lost,
        )

    async def flush(self) -> None:
        """For ever: after `flush_log_bytes` of log the state is flushed and the segments it covers are deleted."""
        while True:
            await asyncio.sleep(
                4 * self._limits.node_heartbeat_ms / 1000
            )  # seldom: an idle node wakes for nothing else
            await self._map.keep()  # if the disk was full when it changed
            if self._log.total_bytes - self._flushed_at_bytes >= self._limits.flush_log_bytes:
                self._flushed_at_bytes = self._log.total_bytes
                await self.flush_now()

    async def flush_now(self) -> None:
        released = self._log.release(await self._state.flush())
        log.info("state flushed", segments_released=released, log_bytes=self._log.disk_bytes)

    # -- the map -------------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """For ever: brings links and replicas up to each map, once it is on disk."""
        while True:
            self._changed = self._map.changed()
            self.follow_members()
            await self._map.keep()
            current = self._map.current
            if self._map.kept_epoch == current.epoch and current is not self._followed:
                self._followed = current
                had_meta = self._shards.meta
                await self._shards.follow(current)
                self._reconciler.wake()
                if self._shards.meta is not had_meta:
                    self._map.announce()
            await self._changed

    def follow_again(self) -> None:
        """Something else than the map changed what is to be here."""
        self._followed = None
        if not self._changed.done():
            self._changed.set_result(None)

    def follow_members(self) -> None:
        """Who is no member is not talked to. An address is told to a link only when the map's has changed: what the link
        heard by itself is newer else."""
        addresses = self._map.addresses()
        members = {member.node: member.address for member in self._map.current.members}
        if self._shards.node not in members:  # removed: nobody here is a peer any more
            members = {}
        for node in self._peers.members():
            if node not in members:
                self._peers.forget(node)
                self._events.forget(node)
        for node, address in members.items():
            if self._addresses.get(node) != address:
                self._peers.set_address(node, addresses[node])
        self._addresses = members

    def fetch_map(self, address: str) -> None:
        """The node there knows a newer map: ask it, one question at a time."""
        if self._fetch_from.empty():
            self._fetch_from.put_nowait(address)

    async def fetch_maps(self) -> None:
        """For ever: fetches newer maps from where they were announced."""
        while True:
            address = await self._fetch_from.get()
            channel: Channel = self._dial(address)
            try:
                async with asyncio.timeout(self._limits.peer_hello_ms / 1000):  # what came meanwhile is not told again
                    request = node_pb2.MapRequest(above_epoch=self._map.epoch)
                    async for newer in channel.replies("Node", "WatchMap", request):
                        await self._map.update(newer)
                        break
            except (ChannelBroken, TenfoldError, TimeoutError) as error:
                log.info("map not fetched", address=address, reason=str(error))
            finally:
                await channel.close()

    async def keep_meta(self) -> None:
        """For ever: publishes what the meta replica here applied; its leader writes the first map and new addresses."""
        while True:
            changed = self._meta.changed()
            known = self._meta.map
            if known is not None:
                await self._map.update(known)
            if self._meta.term:
                command = self._command(known)
                if command is not None:
                    await self._propose(command)
                    continue
            await changed

    def _command(self, known: meta_pb2.ShardMap | None) -> meta_pb2.MetaCommand | None:
        """What the meta leader should write next, if anything."""
        if known is None:
            return meta_pb2.MetaCommand(bootstrap=self._map.current)
        addresses = self._map.addresses()
        for member in known.members:
            if addresses.get(member.node, member.address) != member.address:
                moved = meta_pb2.Member(node=member.node, address=addresses[member.node], zone=member.zone)
                return meta_pb2.MetaCommand(set_member=moved)
        return None

    async def _propose(self, command: meta_pb2.MetaCommand) -> None:
        try:
            await self._meta.propose(command)
        except TenfoldError as refusal:
            log.info("meta command not applied", code=int(refusal.code), reason=refusal.message)
            await asyncio.sleep(self._limits.node_heartbeat_ms / 1000)
