"""Two nodes' transports over the simulated network, in virtual time: snapshots keep to the bound of their sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from chaos.sim.channel import SimChannel
from chaos.sim.clock import HostClock
from chaos.sim.loop import Process, SimLoop, run
from chaos.sim.network import Network
from chaos.sim.server import SimServer
from chaos.sim.transcript import Transcript
from cluster.limits import DEFAULT, Limits
from cluster.raft.messages import Message, MessageKind
from node.storage.layout import data_prefix
from node.storage.memory import MemoryState
from node.storage.snapshot import SnapshotSource
from node.transport.codec import to_wire
from node.transport.peer_service import PeerService
from node.transport.peers import Peers
from node.transport.snapshot_stream import BURST_S, Arriving
from proto.gen import peer_pb2

RATE = 64 * 1024
LIMITS = replace(DEFAULT, snapshot_bytes_per_s=RATE, snapshot_chunk_bytes=4096, node_heartbeat_ms=250)


class Receiver:
    """Takes every snapshot and notes when each chunk came, and when each heartbeat did."""

    def __init__(self, now: Any) -> None:
        self.now = now
        self.came: list[tuple[float, int, int]] = []  # when, shard, bytes
        self.beats: list[float] = []

    def on_messages(self, node: str, messages: list[tuple[int, Message]]) -> None: ...

    def on_peer_up(self, node: str, incarnation: int, address: str) -> None: ...

    def on_peer_down(self, node: str) -> None: ...

    def on_newer_map(self, address: str) -> None: ...

    def on_heartbeat(self, node: str, beat: peer_pb2.NodeHeartbeat) -> None:
        self.beats.append(self.now())

    async def on_snapshot(
        self, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        yield peer_pb2.SnapshotReply()
        while not (chunk := await chunks.next()).last:
            self.came.append((self.now(), header.message.shard, len(chunk.pairs)))
            yield peer_pb2.SnapshotReply(next=chunk.number + 1)
        yield peer_pb2.SnapshotReply(next=chunk.number, done=True, accepted=True)


class World:
    def __init__(self, seed: int, limits: Limits) -> None:
        self.loop = SimLoop(seed)
        self.network = Network(self.loop, Transcript(lambda: self.loop.now), seed, limits)
        self.limits = limits
        self.receiver = Receiver(lambda: self.loop.now)
        self.bugs: list[str] = []

    def play(self, sizes: list[int]) -> list[bool]:
        """One snapshot for each size, all at once; whether each was accepted."""

        async def work() -> list[bool]:
            await self.loop.start(self._process("b"), self._node("b", "a"), "b")
            return await self.loop.start(self._process("a"), self._send_all(sizes), "a")

        return run(self.loop, work())

    def _process(self, name: str) -> Process:
        return Process(name, HostClock(lambda: self.loop.now))

    async def _node(self, name: str, other: str) -> Peers:
        def spawn(work: Any, task: str) -> Any:
            return asyncio.get_running_loop().create_task(work, name=task)

        def dial(address: str) -> SimChannel:
            return SimChannel(self.network, address)

        clock = HostClock(lambda: self.loop.now)
        peers = Peers(name, b"c" * 16, 1, f"{name}:1", dial, spawn, clock, self.limits, self.receiver)
        handlers = [("Peer", PeerService(peers))]
        server = SimServer(self.network, handlers, f"{name}:1", self.limits, lambda where, _: self.bugs.append(where))
        await server.start()
        peers.set_address(other, f"{other}:1")
        return peers

    async def _send_all(self, sizes: list[int]) -> list[bool]:
        peers = await self._node("a", "b")
        while not peers.up():
            await asyncio.sleep(0.01)
        replies = await asyncio.gather(*(self._send(peers, shard, size) for shard, size in enumerate(sizes)))
        return [reply.accepted for reply in replies]

    async def _send(self, peers: Peers, shard: int, size: int) -> peer_pb2.SnapshotReply:
        engine = MemoryState()
        engine.write({data_prefix(shard, 0) + b"%06d" % n: bytes(1000) for n in range(size // 1000)})
        source = SnapshotSource(engine.snapshot(), shard, self.limits.snapshot_chunk_bytes)
        message = Message(MessageKind.SNAPSHOT, 1, 2, 5, 100, 4)
        header = peer_pb2.SnapshotHeader(message=to_wire(shard, message), id=shard)
        return await peers.send_snapshot("b", header, source)


@pytest.mark.parametrize("seed", range(3))
def test_all_that_a_node_sends_keeps_to_its_bound(seed: int) -> None:
    world = World(seed, LIMITS)
    assert world.play([200_000, 400_000]) == [True, True] and world.bugs == []
    came = world.receiver.came
    total = sum(size for _, _, size in came)
    began, ended = came[0][0], came[-1][0]
    jitter_s = 0.1  # a message may overtake none, but be late
    assert total > 600_000
    for at in range(0, len(came), 7):
        span = came[-1][0] - came[at][0]
        assert sum(size for _, _, size in came[at:]) <= RATE * (span + BURST_S + jitter_s) + 2 * 4096
    assert ended - began <= 1.1 * total / RATE, "and the bound is used"
    both = [shard for when, shard, _ in came if when < began + 4]
    assert 0.8 < both.count(0) / both.count(1) < 1.25, "two at once share it"


def test_a_sender_that_waits_long_for_its_turn_is_not_given_up() -> None:
    world = World(1, replace(LIMITS, snapshot_bytes_per_s=1000, snapshot_idle_ms=500))
    assert world.play([20_000, 20_000]) == [True, True], "eight seconds between two chunks of one"


def test_heartbeats_go_on_beside_them() -> None:
    world = World(1, LIMITS)
    assert world.play([400_000]) == [True]
    beats = [when for when in world.receiver.beats if when > 1.0]
    gaps = [later - earlier for earlier, later in zip(sorted(beats), sorted(beats)[1:], strict=False)]
    assert len(gaps) > 20 and max(gaps) < 0.4


def test_one_seed_one_course() -> None:
    courses = []
    for _ in range(2):
        world = World(7, LIMITS)
        world.play([100_000, 50_000])
        courses.append(world.receiver.came)
    assert courses[0] == courses[1]
