"""A cluster of real nodes in one process: real grpc over loopback, the disk and the state that forget.

`crash` is a power cut: what was not synced is gone, and whatever the dead incarnation still does has no effect.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT, Limits
from cluster.ports import Handlers
from cluster.raft.configuration import Configuration
from cluster.ring.ring import shard_of
from cluster.types import META_SHARD
from cluster.wire.channel import dial
from node.__main__ import SystemClock, TaskSpawn
from node.app import Node, Ports
from node.config import MemberConfig, NodeConfig
from node.storage.memory import ForgettingDisk, ForgettingState
from node.tickets import Latch, Proposal
from node.transport.server import Server
from proto.gen import entry_pb2, kv_pb2, meta_pb2, node_pb2

CLUSTER_ID = bytes(range(16))
FAST = replace(DEFAULT, tick_ms=20, node_heartbeat_ms=100, prefer_after_ms=400, driver_ms=3_600_000)
"""Elections within half a second, for tests with many of them. The placement driver sleeps: they do its work by hand."""
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
    def __init__(
        self, *, nodes: int = 3, shards: int = 2, replicas: int = 3, limits: Limits = DEFAULT, seed: int = 1
    ) -> None:
        self.limits = limits
        self.replicas = min(replicas, nodes)
        self.shards = shards
        self.random = random.Random(seed)
        self.sync_s: dict[str, float] = {}  # by node, added to every sync
        self.names = [f"n{i + 1}" for i in range(nodes)]
        self.addresses = {n: f"127.0.0.1:{p}" for n, p in zip(self.names, _free_ports(nodes), strict=True)}
        self.members = [MemberConfig(name, address) for name, address in self.addresses.items()]
        self.disks = {name: ForgettingDisk() for name in self.names}
        self.states = {name: ForgettingState() for name in self.names}
        self.nodes: dict[str, Node] = {}
        self._newest = meta_pb2.ShardMap()
        self.cut_off: set[str] = set()  # these nodes and the others do not hear each other

    async def __aenter__(self) -> ClusterWorld:
        for name in self.names:
            await self.start(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in list(self.nodes):
            await self.nodes.pop(name).abandon()

    async def join(self, name: str) -> Node:
        """A node that the cluster was not born with. It is let in some time later."""
        self.addresses[name] = f"127.0.0.1:{_free_ports(1)[0]}"
        self.disks[name], self.states[name] = ForgettingDisk(), ForgettingState()
        return await self.start(name)

    def wipe(self, name: str) -> None:
        """Its disk is replaced by an empty one."""
        self.disks[name], self.states[name] = ForgettingDisk(), ForgettingState()

    async def start(self, name: str, *, born: bool = False) -> Node:
        config = NodeConfig(format=1, cluster_id=CLUSTER_ID.hex(), node=name, address=self.addresses[name], born=born)
        if name in self.names:
            config.shards, config.members = self.shards, self.members
            config.replication_factor = self.replicas
        else:
            config.join = [address for node, address in self.addresses.items() if node != name]
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
        await node.start()
        self.nodes[name] = node
        return node

    def _passes(self, name: str, address: str) -> bool:
        to = next(node for node, where in self.addresses.items() if where == address)
        return (name in self.cut_off) == (to in self.cut_off)

    def _serve(self, handlers: Handlers, address: str) -> Server:
        return Server(handlers, address=address, limits=self.limits)

    async def crash(self, names: Sequence[str], *, keep: bool = False) -> None:
        """Power off: at one moment for all of `names`."""
        for name in names:
            self.disks[name].crash(self.random, keep=keep)
            self.states[name].crash(self.random, keep=keep)
            self.nodes[name].halt()  # or it would acknowledge what its dead disk says is synced
        for name in names:
            await self.nodes.pop(name).abandon()

    async def stop(self, name: str) -> None:
        """As SIGTERM does it: leaderships are handed over, then it ends."""
        node = self.nodes[name]
        node.begin_stop()
        failure = await node.stopped
        assert failure is None, repr(failure)
        del self.nodes[name]

    def leader(self, shard: int, *, but: str = "") -> Node | None:
        """Who leads in the highest term, of all nodes but one."""
        led = [
            node
            for node in self.nodes.values()
            if node.config.node != but and (r := node.shards.replicas.get(shard)) is not None and r.leading
        ]
        return max(led, key=lambda node: node.shards.replicas[shard].core.term, default=None)

    # -- the map -------------------------------------------------------------------------------------------------------

    async def change(self, **command: Any) -> meta_pb2.MetaResult:
        """One meta command at whoever leads meta, until it is answered for good. TenfoldError."""
        told = meta_pb2.MetaCommand(**command)
        while True:
            leader = self.leader(META_SHARD)
            if leader is not None and leader.shards.meta is not None:
                latch = Latch()
                request = entry_pb2.Request(capability="meta", principal="test", body=told.SerializeToString())
                proposal = Proposal(latch, request, told, frozenset())
                leader.shards.meta.propose(proposal)
                with suppress(TimeoutError):  # a node that crashes meanwhile does not answer
                    async with asyncio.timeout(2):
                        await latch.future
                code = Code(proposal.outcome.code) if proposal.outcome is not None else Code.UNKNOWN_OUTCOME
                if code == Code.OK:
                    break
                if code not in RETRY:
                    raise TenfoldError(code, proposal.outcome.message)
            await asyncio.sleep(0.02)
        assert proposal.outcome is not None
        result = meta_pb2.MetaResult.FromString(proposal.outcome.body)
        await self.until(lambda: self.map().epoch >= result.epoch, "the map is known")
        return result

    def map(self) -> meta_pb2.ShardMap:
        """The newest that any node knows or knew."""
        known = [node.map.current for node in self.nodes.values()]
        self._newest = max([self._newest, *known], key=lambda each: each.epoch)
        return self._newest

    def row(self, shard: int) -> meta_pb2.Shard:
        return self.map().shards[shard]

    async def add(self, shard: int, node: str, replaces: int = 0) -> int:
        """The id of the new replica."""
        result = await self.change(
            add_replica=meta_pb2.AddReplica(shard=shard, version=self.row(shard).version, node=node, replaces=replaces)
        )
        return result.replica

    async def rebuild(self, shard: int, node: str, replica: int) -> None:
        """A new replica in the place of a quarantined one, unless that has been done."""
        with suppress(TenfoldError):
            await self.add(shard, node, replica)

    async def settle(self, shard: int) -> None:
        """Writes into the map what the shard's group has reached, again and again, until nothing is left to settle."""
        while True:
            row = self.row(shard)
            if all(each.stage == meta_pb2.Replica.VOTER for each in row.replicas):
                return
            found = self._reached(shard)
            if found is not None and found.version >= row.version:
                reached = meta_pb2.SettleShard(
                    shard=shard, version=row.version, voters=found.voters, learners=found.learners
                )
                with suppress(TenfoldError):  # the row has changed meanwhile
                    await self.change(settle=reached)
            await asyncio.sleep(0.02)

    def _reached(self, shard: int) -> Configuration | None:
        """What the leader's group has committed, if that is not on its way elsewhere."""
        leader = self.leader(shard)
        if leader is None:
            return None
        core = leader.shards.replicas[shard].core
        done = core.configuration_index <= core.applied_index and not core.configuration.joint
        return core.configuration if done else None

    def spare(self, shard: int = 1) -> str:
        """A node that the map gives no replica of the shard."""
        held = {each.node for each in self.row(shard).replicas}
        return next(name for name in self.nodes if name not in held)

    async def fill(self, count: int = 40) -> None:
        for i in range(count):
            assert (await self.put(b"key-%d" % i, b"value-%d" % i)).code == 0

    async def check(self, count: int = 40) -> None:
        """What `fill` put is there."""
        for i in range(count):
            assert (await self.get(b"key-%d" % i)).value == b"value-%d" % i

    # -- calls ---------------------------------------------------------------------------------------------------------

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


def holds_nothing(node: Node, shard: int = 1) -> bool:
    return (
        shard not in node.shards.replicas and shard not in node.shards.quarantined and shard not in node.state.shards()
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
