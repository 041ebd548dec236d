"""A node's connections to all others: who is up, who was heard when, and what goes where.

Each node dials each other one, so a pair has two streams and each carries frames one way. A stream opens with a hello
both ways (cluster id, node, incarnation, address); a foreign cluster, an unknown node or an older incarnation is refused.
An accepted hello tells the dialler's address, which moves our own link to it: addresses need no meta shard.
Frames travel one stream message per peer and round; snapshots go over a second connection, so that they never delay a
heartbeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Clock, Dial, Spawn
from cluster.raft.messages import Message
from node.transport.codec import from_wire
from node.transport.link import PROTOCOL, Identity, Link
from node.transport.snapshot_stream import Arriving, Attempt, Counts, Pace, Pieces
from proto.gen import peer_pb2


class PeerHandler(Protocol):
    """What the node does with what its peers say. None of the synchronous ones may block or raise."""

    def on_messages(self, node: str, messages: list[tuple[int, Message]]) -> None:
        """(shard, message) pairs of one frame, in the order sent."""

    def on_peer_up(self, node: str, incarnation: int, address: str) -> None:
        """Messages sent from now on reach it."""

    def on_peer_down(self, node: str) -> None:
        """A stream to or from it broke: a hint that it died. May come twice for one death."""

    def on_newer_map(self, address: str) -> None:
        """Somebody there knows a newer map: we do not know it as a member, or it does not know us. Comes again with each
        attempt of either side."""

    def on_heartbeat(self, node: str, beat: peer_pb2.NodeHeartbeat) -> None: ...

    def on_snapshot(
        self, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        """Says first where to begin, then what it has taken, in the end whether it is installed. What `chunks` raises may
        be let through: the sender then tries again."""


class Peers:
    """All links of one node. Everything but `send_snapshot` and `close` returns at once."""

    def __init__(
        self,
        node: str,
        cluster_id: bytes,
        incarnation: int,
        address: str,
        dial: Dial,
        spawn: Spawn,
        clock: Clock,
        limits: Limits,
        handler: PeerHandler,
        log: Any = None,
    ) -> None:
        self.identity = Identity(cluster_id, node, incarnation, address)
        self.handler = handler
        self.log = log if log is not None else structlog.get_logger()
        self._dial = dial
        self._spawn = spawn
        self._clock = clock
        self._limits = limits
        self._links: dict[str, Link] = {}
        self._incarnations: dict[str, int] = {}
        self._heard_s: dict[str, float] = {}
        self._bulk: dict[str, tuple[str, Channel]] = {}
        self._pace = Pace(limits.snapshot_bytes_per_s, clock)
        self._snapshots = Counts()
        self._refusals: dict[str, None] = {}
        self._beat = peer_pb2.NodeHeartbeat(incarnation=incarnation)
        self._left: list[Link] = []  # links that were forgotten and may still be ending
        self._left_counts = [0, 0, 0]
        self.mute = False  # no heartbeat leaves: this node cannot do what they would vouch for
        self._closing = asyncio.Event()
        self._heart_stopped = asyncio.Event()
        spawn(self._heartbeat_loop(), "node heartbeats")

    def set_address(self, node: str, address: str) -> None:
        """Makes `node` a known member and dials it; the own name is ignored. A changed address is dialled at once, unless
        the link stands: that proves its address, and the new one is tried when it breaks."""
        if node == self.identity.node or self._closing.is_set():
            return
        link = self._links.get(node)
        if link is not None:
            link.move(address, at_once=False)
            return
        assert len(self._links) < self._limits.nodes_max, "no more members than nodes_max"
        self._links[node] = Link(
            node,
            address,
            self.identity,
            self,
            dial=self._dial,
            spawn=self._spawn,
            clock=self._clock,
            limits=self._limits,
            log=self.log,
        )

    def forget(self, node: str) -> None:
        """`node` is no member any more: nothing is sent to it and nothing it says is heard. Its incarnation stays known."""
        link = self._links.pop(node, None)
        if link is None or self._closing.is_set():
            return
        self._heard_s.pop(node, None)
        counts = (link.messages_sent, link.messages_dropped, link.frames_sent)
        self._left_counts = [sum(pair) for pair in zip(self._left_counts, counts, strict=True)]
        self._left = [*(each for each in self._left if not each.ended), link]
        self._spawn(self._leave(link, self._bulk.pop(node, None)), f"farewell to {node}")

    async def _leave(self, link: Link, bulk: tuple[str, Channel] | None) -> None:
        await link.close()
        if bulk is not None:
            await bulk[1].close()

    def known(self, node: str) -> bool:
        return node in self._links

    def members(self) -> list[str]:
        """Every node that is dialled."""
        return list(self._links)

    def address_of(self, node: str) -> str:
        """KeyError for an unknown node."""
        return self._links[node].address

    def up(self) -> list[str]:
        """The peers that messages reach at present, by name."""
        return sorted(node for node, link in self._links.items() if link.up)

    def heard_s(self, node: str) -> float:
        """When a frame of it last came, by the monotonic clock, in seconds; minus infinity if never."""
        return self._heard_s.get(node, float("-inf"))

    def counters(self) -> dict[str, int]:
        links = self._links.values()
        sent, dropped, frames = self._left_counts
        return {
            "peer_messages_sent": sent + sum(link.messages_sent for link in links),
            "peer_messages_dropped": dropped + sum(link.messages_dropped for link in links),
            "peer_frames_sent": frames + sum(link.frames_sent for link in links),
            "snapshot_bytes_sent": self._snapshots.bytes,
            "snapshots_resumed": self._snapshots.resumed,
        }

    def send(self, node: str, shard: int, messages: list[Message]) -> None:
        """Queues for the next frame. Dropped (and counted) if the peer is unknown, down or its queue is full."""
        link = self._links.get(node)
        if link is not None:
            link.send(shard, messages)

    def flush(self) -> None:
        """The stage is over: let the frames go."""
        for link in self._links.values():
            link.flush()

    def set_heartbeat(
        self, led_shards: int, epoch: int, *, quarantined: int = 0, stopping: bool = False, lost: bool = False
    ) -> None:
        """What the heartbeats say from now on; a change goes with the next frame, at the latest within an interval."""
        beat = peer_pb2.NodeHeartbeat(
            incarnation=self.identity.incarnation,
            led_shards=led_shards,
            epoch=epoch,
            quarantined=quarantined,
            stopping=stopping,
            lost=lost,
        )
        self.identity.epoch = epoch
        if beat != self._beat:
            self._beat = beat
            for link in self._links.values():
                link.beat(changed=True)

    async def send_snapshot(self, node: str, header: peer_pb2.SnapshotHeader, pieces: Pieces) -> peer_pb2.SnapshotReply:
        """One attempt over the bulk channel, from where the receiver stands. The header's hello is filled in.
        ChannelBroken, TimeoutError, TenfoldError: the peer may or may not have installed it. Also raises what `pieces`
        raises; then the peer installs nothing."""
        channel = await self._bulk_channel(node)
        header.hello.CopyFrom(self.identity.hello())
        attempt = Attempt(channel.stream("Peer", "Snapshot"), self._pace, self._limits, self._snapshots)
        return await attempt.run(header, pieces)

    def arriving(self, requests: AsyncIterator[peer_pb2.SnapshotChunk]) -> Arriving:
        """The chunks of one stream, as they come."""
        return Arriving(requests, self._limits)

    async def close(self) -> None:
        """Breaks all streams and waits until every task has ended. No callback comes any more."""
        if self._closing.is_set():
            return
        self._closing.set()
        for link in [*self._links.values(), *self._left]:
            await link.close()
        for _, channel in self._bulk.values():
            await channel.close()
        await self._heart_stopped.wait()

    def check(self, hello: peer_pb2.Hello) -> None:
        """TenfoldError if whoever says this may not talk to us."""
        if hello.protocol != PROTOCOL:
            self._refuse(hello, Code.INVALID_ARGUMENT, f"protocol: {hello.protocol} is not {PROTOCOL}")
        if hello.cluster_id != self.identity.cluster_id:
            self._refuse(hello, Code.WRONG_CLUSTER, f"cluster {hello.cluster_id.hex()} is another cluster")
        if not self.known(hello.node):
            if hello.address and hello.epoch > self.identity.epoch:
                self.handler.on_newer_map(hello.address)
            why = f"node: {hello.node!r} is no member known here"
            self._refuse(hello, Code.INVALID_ARGUMENT, why, epoch=self.identity.epoch)
        known = self._incarnations.get(hello.node, 0)
        if hello.incarnation < known:
            why = f"incarnation: {hello.incarnation} of {hello.node} is over"
            self._refuse(hello, Code.INVALID_ARGUMENT, why)

    def admit(self, hello: peer_pb2.Hello) -> None:
        """Checks who dials in, and follows it to the address it tells. TenfoldError if it may not."""
        self.check(hello)
        newer = hello.incarnation > self._incarnations.get(hello.node, -1)
        self.link_heard(hello.node, hello.incarnation)
        link = self._links[hello.node]
        if hello.address:
            link.move(hello.address, at_once=newer)
        link.kick()

    def receive(self, node: str, frame: peer_pb2.Frame) -> None:
        """One frame of an admitted peer. TenfoldError once it is no member any more."""
        if not self.known(node):
            why = f"node: {node!r} is no member any more"
            raise TenfoldError(Code.INVALID_ARGUMENT, why, epoch=self.identity.epoch)
        self._heard_s[node] = self._clock.monotonic()
        if self._closing.is_set():
            return
        if frame.messages:
            self.handler.on_messages(node, [(wire.shard, from_wire(wire)) for wire in frame.messages])
        if frame.HasField("heartbeat"):
            self.handler.on_heartbeat(node, frame.heartbeat)

    def stream_from_broke(self, node: str) -> None:
        """An admitted peer's stream to us ended."""
        self.link_down(node)

    def link_heard(self, node: str, incarnation: int) -> bool:
        if incarnation < self._incarnations.get(node, 0):
            return False
        self._incarnations[node] = incarnation
        self._heard_s[node] = self._clock.monotonic()
        return True

    def link_up(self, node: str, incarnation: int, address: str) -> None:
        self.handler.on_peer_up(node, incarnation, address)

    def link_down(self, node: str) -> None:
        if not self._closing.is_set():
            self.handler.on_peer_down(node)

    def link_refused(self, node: str, refusal: TenfoldError) -> None:
        if self._closing.is_set():
            return
        link = self._links.get(node)  # none: it is forgotten, and its link about to end
        if link is not None and int(str(refusal.details.get("epoch", 0))) > self.identity.epoch:
            self.handler.on_newer_map(link.address)

    def heartbeat(self) -> peer_pb2.NodeHeartbeat:
        return self._beat

    def _refuse(self, hello: peer_pb2.Hello, code: Code, why: str, **details: int) -> None:
        if why not in self._refusals:  # it will try again five times a second: one line each is enough
            if len(self._refusals) >= self._limits.nodes_max:
                self._refusals.clear()
            self._refusals[why] = None
            self.log.warning("peer refused", peer=hello.node, address=hello.address, why=why)
        raise TenfoldError(code, why, **details)

    async def _bulk_channel(self, node: str) -> Channel:
        """The second connection to a peer, opened when first needed."""
        link = self._links.get(node)
        if link is None:
            raise ChannelBroken(f"{node} is no member known here", sent=False)
        address = link.address
        found = self._bulk.get(node)
        if found is not None and found[0] == address and not self._closing.is_set():
            return found[1]
        if self._closing.is_set():
            raise ChannelBroken("the node is closing", sent=False)
        channel = self._dial(address)
        self._bulk[node] = (address, channel)
        if found is not None:
            await found[1].close()
        return channel

    async def _heartbeat_loop(self) -> None:
        """Every interval; a link whose last frame carried the heartbeat lately needs none of its own."""
        while not self._closing.is_set():
            for link in self._links.values() if not self.mute else ():
                link.beat(changed=False)
            try:
                async with asyncio.timeout(self._limits.node_heartbeat_ms / 1000):
                    await self._closing.wait()
            except TimeoutError:
                pass
        self._heart_stopped.set()
