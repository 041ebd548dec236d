"""What peers say, turned into inputs of the replicas; and silence, read as a suspicion.

Node heartbeats speak for idle shards (limits: node_heartbeat_ms). A peer that comes, goes, changes its incarnation or its
number of led shards, or is not heard for an election timeout, wakes the shards shared with it. A broken stream is a
hint that shortens a follower's wait; pre-vote keeps it safe.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Clock
from cluster.raft.messages import Message
from node.replica import Replica
from node.shards import Shards
from node.snapshots import Snapshots
from node.transport.snapshot_stream import Arriving
from proto.gen import peer_pb2


class PeerEvents:
    """The transport's handler. `fetch_map` is called with the address of a node that knows a newer map."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._clock = clock
        self._suspect_s = limits.tick_ms * limits.election_ticks_min / 1000
        self.told: dict[str, peer_pb2.NodeHeartbeat] = {}
        """The last heartbeat of each peer whose stream stands."""
        self._suspected: set[str] = set()

    def connect(
        self,
        shards: Shards,
        snapshots: Snapshots,
        fetch_map: Callable[[str], None],
    ) -> None:
        """Before the first peer is dialled: whom the events are for."""
        self._shards = shards
        self._snapshots = snapshots
        self._fetch_map = fetch_map

    def on_messages(self, node: str, messages: list[tuple[int, Message]]) -> None:
        replicas = self._shards.replicas
        for shard, message in messages:
            replica = replicas.get(shard)
            if replica is not None and replica.node_of.get(message.sender) == node:
                replica.receive(message)

    def on_peer_up(self, node: str, incarnation: int, address: str) -> None:
        self._shards.map.heard(node, address)
        for replica, peer in self._shared(node):
            replica.core.peer_reconnected(peer)
            replica.core.wake()
            replica.hurry_birth()
            replica.touch()

    def on_peer_down(self, node: str) -> None:
        self.told.pop(node, None)
        for replica, peer in self._shared(node):
            replica.core.peer_disconnected(peer)
            replica.core.wake()
            replica.touch()

    def on_newer_map(self, address: str) -> None:
        self._fetch_map(address)

    def on_heartbeat(self, node: str, beat: peer_pb2.NodeHeartbeat) -> None:
        before, self.told[node] = self.told.get(node), beat
        if before is not None and (before.incarnation, before.led_shards) != (beat.incarnation, beat.led_shards):
            self._wake(node)
        now = self._clock.monotonic()
        for replica, peer in self._shared(node):
            if replica.core.leader == peer:
                replica.heard_leader(now)
        if beat.epoch > self._shards.map.epoch and (address := self._shards.map.addresses().get(node)):
            self._fetch_map(address)

    def forget(self, node: str) -> None:
        """It is no member any more."""
        self.told.pop(node, None)
        self._suspected.discard(node)

    def stopping(self, node: str) -> bool:
        """Whether it said that it is about to stop."""
        beat = self.told.get(node)
        return beat is not None and beat.stopping

    def on_snapshot(
        self, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        replica = self._shards.replicas.get(header.message.shard)
        if replica is None or replica.core.replica != header.message.receiver:
            raise TenfoldError(Code.WRONG_SHARD, f"shard {header.message.shard}: no such replica here")
        if replica.node_of.get(header.message.sender) != node:
            raise TenfoldError(Code.INVALID_ARGUMENT, f"sender: not a replica on node {node}")
        return self._snapshots.receive(replica, node, header, chunks)

    def suspect(self, heard: dict[str, float]) -> None:
        """Called every tick with when each peer was last heard (monotonic seconds)."""
        now = self._clock.monotonic()
        for node, at in heard.items():
            if now - at < self._suspect_s:
                self._suspected.discard(node)
            elif node not in self._suspected:
                self._suspected.add(node)
                self._wake(node)

    def _wake(self, node: str) -> None:
        for replica, _ in self._shared(node):
            replica.core.wake()
            replica.touch()

    def _shared(self, node: str) -> list[tuple[Replica, int]]:
        return [
            (replica, peer)
            for replica in self._shards.replicas.values()
            for peer, name in replica.node_of.items()
            if name == node
        ]
