"""A cluster of real nodes in one process: real grpc over loopback, the disk and the state that forget.

`crash` is a power cut: what was not synced is gone, and whatever the dead incarnation still does has no effect.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import Code
from cluster.limits import DEFAULT, Limits
from cluster.ports import Handlers
from cluster.ring.ring import shard_of
from cluster.wire.channel import dial
from node.__main__ import SystemClock, TaskSpawn
from node.app import Node, Ports
from node.config import MemberConfig, NodeConfig
from node.storage.memory import ForgettingDisk, ForgettingState
from node.transport.server import Server
from proto.gen import kv_pb2, node_pb2

CLUSTER_ID = bytes(range(16))
RETRY = {Code.NOT_LEADER, Code.UNAVAILABLE, Code.OVERLOADED, Code.UNKNOWN_OUTCOME, Code.SHUTTING_DOWN}


class SlowFile:
    """A file whose sync takes its time, so that what is said before it can be told from what is said after it."""

    def __init__(self, file: Any, world: ClusterWorld, node: str) -> None:
        self._file = file
        self._world = world
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    async def sync(self) -> None:
        await asyncio.sleep(self._world.sync_s.get(self._node, 0.0))
        await self._file.sync()


class SlowDisk:
    def __init__(self, disk: Any, world: ClusterWorld, node: str) -> None:
        self._disk = disk
        self._world = world
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def create(self, path: str) -> Any:
        return SlowFile(self._disk.create(path), self._world, self._node)

    def open(self, path: str, *, writable: bool = False) -> Any:
        return SlowFile(self._disk.open(path, writable=writable), self._world, self._node)


class GatedStream:
    """A stream whose messages vanish while its two nodes are cut apart."""

    def __init__(self, stream: Any, passes: Callable[[], bool]) -> None:
        self._stream = stream
        self._passes = passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def write(self, message: Any) -> None:
        if self._passes():
            await self._stream.write(message)


class GatedChannel:
    def __init__(self, channel: Any, passes: Callable[[], bool]) -> None:
        self._channel = channel
        self._passes = passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def stream(self, service: str, method: str) -> GatedStream:
        return GatedStream(self._channel.stream(service, method), self._passes)


class Context:
    """What a handler is told of its caller."""

    def remaining_s(self) -> float | None:
        return None


class ClusterWorld:
    def __init__(self, *, nodes: int = 3, shards: int = 2, limits: Limits = DEFAULT, seed: int = 1) -> None:
        self.limits = limits
        self.shards = shards
        self.random = random.Random(seed)
        self.sync_s: dict[str, float] = {}  # by node, added to every sync
        self.names = [f"n{i + 1}" for i in range(nodes)]
        ports = _free_ports(nodes)
        self.members = [MemberConfig(n, f"127.0.0.1:{p}") for n, p in zip(self.names, ports, strict=True)]
        self.disks = {name: ForgettingDisk() for name in self.names}
        self.states = {name: ForgettingState() for name in self.names}
        self.nodes: dict[str, Node] = {}
        self.cut_off: set[str] = set()  # these nodes and the others do not hear each other

    async def __aenter__(self) -> ClusterWorld:
        for name in self.names:
            await self.start(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in list(self.nodes):
            await self.nodes.pop(name).abandon()

    async def start(self, name: str, *, born: bool = False) -> Node:
        address = next(member.address for member in self.members if member.node == name)
        config = NodeConfig(
            format=1,
            cluster_id=CLUSTER_ID.hex(),
            node=name,
            address=address,
            shards=self.shards,
            replication_factor=min(3, len(self.names)),
            members=self.members,
            born=born,
        )
        ports = Ports(
            disk=SlowDisk(self.disks[name].attach(), self, name),
            open_state=self.states[name].attach,
            dial=lambda to: GatedChannel(dial(to), lambda: self._passes(name, to)),
            serve=self._serve,
            clock=SystemClock(),
            random=random.Random(self.random.random()),
            spawn=TaskSpawn(),
            boot_id=f"boot-{self.random.random()}",
        )
        node = Node(config, ports, self.limits)
        self.nodes[name] = node
        await node.start()
        return node

    def _passes(self, name: str, address: str) -> bool:
        to = next(member.node for member in self.members if member.address == address)
        return (name in self.cut_off) == (to in self.cut_off)

    def _serve(self, handlers: Handlers, address: str) -> Server:
        return Server(handlers, address=address, limits=self.limits)

    async def crash(self, names: Sequence[str], *, keep: bool = False) -> None:
        """Power off: at one moment for all of `names`."""
        for name in names:
            self.disks[name].crash(self.random, keep=keep)
            self.states[name].crash(self.random, keep=keep)
        for name in names:
            await self.nodes.pop(name).abandon()

    def leader(self, shard: int, *, but: str = "") -> Node | None:
        """Who leads in the highest term, of all nodes but one."""
        led = [
            node
            for node in self.nodes.values()
            if node.config.node != but and (r := node.shards.replicas.get(shard)) is not None and r.leading
        ]
        return max(led, key=lambda node: node.shards.replicas[shard].core.term, default=None)

    async def call(self, sub: node_pb2.SubRequest, *, node: Node | None = None) -> node_pb2.SubReply:
        """One sub-request, at `node` or wherever the leader is, until it is answered for good."""
        while True:
            asked = node or self.leader(sub.shard)
            if asked is not None:
                request = node_pb2.CallRequest(cluster_id=CLUSTER_ID, requests=[sub])
                reply = (await asked.service.call(request, Context())).replies[0]
                if node is not None or Code(reply.code) not in RETRY:
                    return reply
            await asyncio.sleep(0.02)

    async def put(self, key: bytes, value: bytes, **session: int) -> node_pb2.SubReply:
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=key, value=value)]).SerializeToString()
        return await self.call(self.command(key, body, **session))

    def command(self, key: bytes, body: bytes, **session: int) -> node_pb2.SubRequest:
        shard = shard_of(key, self.shards)
        return node_pb2.SubRequest(shard=shard, shard_version=1, capability="kv", body=body, **session)  # type: ignore[arg-type]

    async def get(self, key: bytes, *, node: Node | None = None, consistency: int = 0) -> kv_pb2.KeyValue:
        sub = self.get_request(key, consistency)
        reply = await self.call(sub, node=node)
        assert reply.code == 0, reply
        return kv_pb2.KvAnswer.FromString(reply.body).items[0]

    def get_request(self, key: bytes, consistency: int = 0) -> node_pb2.SubRequest:
        body = kv_pb2.KvQuery(get=kv_pb2.KvGet(keys=[key])).SerializeToString()
        return node_pb2.SubRequest(
            shard=shard_of(key, self.shards),
            shard_version=1,
            capability="kv",
            mode=node_pb2.QUERY,
            consistency=consistency,  # type: ignore[arg-type]
            body=body,
        )

    async def until(self, condition: Any, what: str, timeout_s: float = 20.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}") from None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
