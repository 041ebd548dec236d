"""The shard map as this node knows it: kept on disk, ordered by its epoch, followed by a watch.

Addresses heard in a peer's Hello win over the map's, so a cluster whose nodes all come back on new ports finds itself.
Law: replicas are opened and dropped by a map that is on disk, so no replica was ever here that is newer than that map.
"""

from __future__ import annotations

import asyncio

import structlog

from cluster.ports import DiskFull, StorageFailed
from node.storage.identity import Identity, Sealed
from proto.gen import meta_pb2

PATH = "map"

log = structlog.get_logger("map")


class ClusterMap:
    """`current` is the newest map seen, `kept_epoch` that of the map on disk; `first` is what the node knows without it,
    at epoch 0 nothing. `damaged`: what lay on disk cannot be read, and the node has to be told anew."""

    def __init__(self, first: meta_pb2.ShardMap, kept: Sealed, identity: Identity) -> None:
        self.current = first
        self._kept = kept
        self._identity = identity
        self._heard: dict[str, str] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._writing = asyncio.Lock()
        self.kept_epoch = first.epoch  # every node is born with it
        self.damaged = False
        try:
            body = kept.read(identity)
        except StorageFailed as error:
            log.error("the map on disk is damaged", error=str(error))
            self.damaged, body = True, None
        if body is not None:
            last = meta_pb2.ShardMap.FromString(body)
            if last.epoch > first.epoch:
                self.current = last
                self.kept_epoch = last.epoch
        self._by_id = {shard.id: shard for shard in self.current.shards}

    @property
    def epoch(self) -> int:
        return self.current.epoch

    def shard(self, shard: int) -> meta_pb2.Shard | None:
        return self._by_id.get(shard)

    def addresses(self) -> dict[str, str]:
        return {m.node: self._heard.get(m.node, m.address) for m in self.current.members}

    def with_addresses(self) -> meta_pb2.ShardMap:
        """The map as clients get it: every member where it was last heard of."""
        told = meta_pb2.ShardMap()
        told.CopyFrom(self.current)
        for member in told.members:
            member.address = self._heard.get(member.node, member.address)
        return told

    def heard(self, node: str, address: str) -> None:
        if self._heard.get(node) != address:
            self._heard[node] = address
            self.announce()

    async def update(self, newer: meta_pb2.ShardMap) -> None:
        """Follows a newer map; an older or equal one changes nothing."""
        if newer.cluster_id != self.current.cluster_id or newer.epoch <= self.current.epoch:
            return
        self._forget_moved(newer)
        self.current = newer
        self._by_id = {shard.id: shard for shard in newer.shards}
        self.announce()
        await self.keep()

    async def keep(self) -> None:
        """Brings the file up to the newest map. Where the disk is full this map stays in memory, and whoever calls next
        tries again. StorageFailed."""
        async with (
            self._writing
        ):  # two may come at once, from a peer and from meta; the file is replaced by one at a time
            newest = self.current
            if newest.epoch <= self.kept_epoch:
                return
            try:
                await self._kept.write(self._identity, newest.SerializeToString())
            except DiskFull:
                return
            self.kept_epoch = newest.epoch
            self.announce()

    def _forget_moved(self, newer: meta_pb2.ShardMap) -> None:
        """A member that moved, of which nothing was heard since the map before, is where the newer map says: the old
        Hello would else be told to clients under the new epoch, and they would believe it for good."""
        before = {member.node: member.address for member in self.current.members}
        for member in newer.members:
            old = before.get(member.node)
            if member.address != old and self._heard.get(member.node) == old:
                self._heard.pop(member.node, None)

    def changed(self) -> asyncio.Future[None]:
        """Resolved at the next change of the map, of an address or of what lives here by the map."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.notify(future)
        return future

    def notify(self, future: asyncio.Future[None]) -> None:
        """Resolves `future` at the next change, unless something else has."""
        self._waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters.append(future)

    def announce(self) -> None:
        """Wakes whoever waits for a change; also called when what lives here has changed by the map."""
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)
