"""A cluster without nodes: the real services, machines, session tables and feeds of each shard behind `ports.Channel`, and a
network that loses, delays, repeats and refuses on order. Each sub-request is an entry of its own in its shard's log. A shard is
served where the map lists it, whatever version a request names; nodes in `behind` still know an older map."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from enum import Enum
from typing import Any

from client.client import Client
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT, Limits
from cluster.ports import ChannelBroken
from cluster.ring.ring import shard_of
from cluster.ring.shard_map import first_map
from cluster.types import EntryKind
from node.capabilities import discover
from node.services import fences
from proto.gen import kv_pb2, meta_pb2, node_pb2
from proto.gen.entry_pb2 import Request
from tests.machines.shard_world import ShardWorld

CLUSTER_ID = bytes(range(16))
RTT_S = 0.001


class Fault(Enum):
    NONE = "none"
    NOT_SENT = "no connection"
    LOSE_REQUEST = "the connection broke before the node got it"
    LOSE_REPLY = "the node did it, then the connection broke"
    HANG = "the node never answers"
    HANG_AFTER = "the node does it and never answers"
    REPEAT = "what the node accepted is proposed a second time, much later"


FaultRule = Callable[[str, node_pb2.CallRequest], Fault]
Refusal = Callable[[str, node_pb2.SubRequest], node_pb2.SubReply | None]


class FakeCluster:
    """`leaders`, `map`, `behind` and `draining` may be changed at any time. `faults` decides about each call, `refuse` about each
    sub-request. A new map is told by `break_streams`, in replies and to who asks, or pushed by `install`."""

    def __init__(self, shards: int = 3, nodes: int = 3, limits: Limits = DEFAULT, *, checked: bool = False) -> None:
        self.limits = limits
        members = [(f"n{i}", f"host{i}:1", "") for i in range(1, nodes + 1)]
        self.map = first_map(CLUSTER_ID, members, shards, nodes)
        self.shards = shards
        self.behind: dict[str, meta_pb2.ShardMap] = {}
        self.draining: set[str] = set()
        self.closed: list[str] = []  # addresses of channels
        self.map_requests: list[tuple[str, node_pb2.MapRequest]] = []
        self.worlds = {shard: ShardWorld(limits, checked=checked) for shard in range(1, shards + 1)}
        self.leaders = {shard.id: shard.replicas[0].node for shard in self.map.shards}
        self.down: set[str] = set()
        self.delay_s: dict[int, float] = {}  # by shard: how long its part of a call takes
        self.calls: list[tuple[str, node_pb2.CallRequest]] = []
        self.watches: list[node_pb2.WatchRequest] = []
        self.faults: FaultRule = lambda node, request: Fault.NONE
        self.refuse: Refusal = lambda node, sub: None
        self.in_flight: dict[str, int] = {}
        self.most_in_flight: dict[str, int] = {}
        self.bodies: dict[tuple[int, int, int], bytes] = {}
        self.map_streams = 0
        self.tells_epoch = True
        self._services = discover(limits)
        self._changed: dict[int, asyncio.Event] = {}
        self._broken: dict[str, asyncio.Event] = {}
        self._pushed = asyncio.Event()
        self._later: list[asyncio.Task[None]] = []

    # -- for tests -----------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        return [member.address for member in self.map.members]

    def client(self, **settings: Any) -> Client:
        settings = {"limits": self.limits, "random": random.Random(1), "dial": self.dial, **settings}
        return Client(self.addresses, **settings)

    def shard_of(self, key: bytes) -> int:
        return shard_of(key, self.shards)

    def key_in(self, shard: int, number: int = 0) -> bytes:
        """The `number`th key that lies in `shard`."""
        found = (b"key%d" % i for i in range(100_000) if self.shard_of(b"key%d" % i) == shard)
        return [next(found) for _ in range(number + 1)][-1]

    def value(self, key: bytes) -> bytes | None:
        item = self.worlds[self.shard_of(key)].get(key)
        return bytes(item.value) if item.version else None

    def subs(self) -> list[node_pb2.SubRequest]:
        return [sub for _, call in self.calls for sub in call.requests]

    def commands(self) -> list[node_pb2.SubRequest]:
        return [sub for sub in self.subs() if sub.mode == node_pb2.COMMAND]

    def forget_sessions(self, shard: int) -> None:
        """They expire."""
        world = self.worlds[shard]
        world.time_ms += self.limits.session_expiry_ms
        for _ in range(1 + len(world.applier.sessions)):
            world.pulse()
        assert len(world.applier.sessions) == 0

    def move(self, shard: int, node: str) -> None:
        """Another leader; streams to the old one end."""
        self.leaders[shard] = node
        self._wake(shard)

    def drain(self, node: str) -> None:
        """The node refuses all work from now on, and its watches end."""
        self.draining.add(node)
        for shard in self.worlds:
            self._wake(shard)

    def break_streams(self, node: str) -> None:
        self._broken.pop(node, asyncio.Event()).set()

    def known(self, node: str) -> meta_pb2.ShardMap:
        """The map that `node` knows."""
        return self.behind.get(node, self.map)

    def next_map(self) -> meta_pb2.ShardMap:
        """A copy of the map with the next epoch, to be changed and installed."""
        newer = meta_pb2.ShardMap()
        newer.CopyFrom(self.map)
        newer.epoch += 1
        return newer

    def install(self, newer: meta_pb2.ShardMap, *, behind: Iterable[str] = ()) -> None:
        """The cluster has this map from now on. Nodes of `behind` stay with the one before; all others tell who watches."""
        late = set(behind)
        for node in late:
            self.behind.setdefault(node, self.map)
        self.map = newer
        pushed, self._pushed = self._pushed, asyncio.Event()
        pushed.set()

    def catch_up(self, *nodes: str) -> None:
        for node in nodes:
            self.behind.pop(node, None)
        pushed, self._pushed = self._pushed, asyncio.Event()
        pushed.set()

    async def close(self) -> None:
        for task in self._later:
            await task

    # -- the network ---------------------------------------------------------------------------------------------------

    def dial(self, address: str) -> FakeChannel:
        node = next((m.node for m in self.map.members if m.address == address), "")
        return FakeChannel(self, node, address)

    async def call(self, node: str, request: node_pb2.CallRequest, timeout_s: float) -> node_pb2.CallReply:
        request = node_pb2.CallRequest.FromString(request.SerializeToString())
        self.calls.append((node, request))
        fault = self.faults(node, request)
        if node in self.down or fault is Fault.NOT_SENT:
            raise ChannelBroken("failed to connect", sent=False)
        self.in_flight[node] = self.in_flight.get(node, 0) + 1
        self.most_in_flight[node] = max(self.most_in_flight.get(node, 0), self.in_flight[node])
        try:
            return await self._carry(node, request, fault, timeout_s)
        finally:
            self.in_flight[node] -= 1

    async def _carry(
        self, node: str, request: node_pb2.CallRequest, fault: Fault, timeout_s: float
    ) -> node_pb2.CallReply:
        await asyncio.sleep(RTT_S / 2)
        if fault is Fault.HANG:
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        if fault is Fault.LOSE_REQUEST:
            raise ChannelBroken("connection reset")
        await asyncio.sleep(max(self.delay_s.get(sub.shard, 0.0) for sub in request.requests))
        reply = self.serve(node, request)
        if fault is Fault.HANG_AFTER:
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        if fault is Fault.REPEAT:
            accepted = [sub for sub, told in zip(request.requests, reply.replies, strict=True) if not told.code]
            self._later.append(asyncio.ensure_future(self._again(node, accepted)))
        await asyncio.sleep(RTT_S / 2)
        if fault is Fault.LOSE_REPLY:
            raise ChannelBroken("connection reset")
        return reply

    async def _again(self, node: str, accepted: list[node_pb2.SubRequest]) -> None:
        await asyncio.sleep(0.5)
        for sub in accepted:
            self._serve_one(node, sub)

    # -- the nodes -----------------------------------------------------------------------------------------------------

    def serve(self, node: str, request: node_pb2.CallRequest) -> node_pb2.CallReply:
        limits = self.limits
        assert 1 <= len(request.requests) <= limits.call_requests_max
        assert request.ByteSize() <= limits.message_bytes_max
        assert request.deadline_ms >= 1
        if request.cluster_id != CLUSTER_ID:
            raise TenfoldError(Code.WRONG_CLUSTER)
        replies = [self._serve_one(node, sub) for sub in request.requests]
        return node_pb2.CallReply(epoch=self.known(node).epoch if self.tells_epoch else 0, replies=replies)

    def _serve_one(self, node: str, sub: node_pb2.SubRequest) -> node_pb2.SubReply:
        refused = self.refuse(node, sub)
        if refused is not None:
            return refused
        if node in self.draining:
            return node_pb2.SubReply(code=Code.SHUTTING_DOWN, leader=self.leaders[sub.shard])
        if (code := self._misplaced(node, sub.shard, sub.shard_version)) is not None:
            return node_pb2.SubReply(code=code)
        stale = sub.mode == node_pb2.QUERY and sub.consistency == node_pb2.STALE
        if self.leaders[sub.shard] != node and not stale:
            return node_pb2.SubReply(code=Code.NOT_LEADER, leader=self.leaders[sub.shard])
        try:
            return self._query(sub) if sub.mode == node_pb2.QUERY else self._command(sub)
        except TenfoldError as error:
            return node_pb2.SubReply(code=error.code, message=error.message)

    def _misplaced(self, node: str, shard: int, version: int) -> Code | None:
        """As `Shards.lookup` refuses: who holds a replica serves it, whatever version is named."""
        placed = self.known(node).shards[shard]
        if any(replica.node == node for replica in placed.replicas):
            return None
        if version == placed.version:
            return Code.WRONG_SHARD
        return Code.STALE_MAP if version < placed.version else Code.MAP_BEHIND

    def _query(self, sub: node_pb2.SubRequest) -> node_pb2.SubReply:
        world = self.worlds[sub.shard]
        service = self._services[sub.capability]
        answer = world.applier.query(sub.capability, service.query(sub.body, sub.shard, self.shards))
        stale_ms = 7 if sub.consistency == node_pb2.STALE else 0
        return node_pb2.SubReply(body=answer.SerializeToString(), index=world.index, stale_ms=stale_ms)

    def _command(self, sub: node_pb2.SubRequest) -> node_pb2.SubReply:
        world = self.worlds[sub.shard]
        if sub.mode == node_pb2.OPEN_SESSION:
            outcome = world.entry(Request(open_session=True), kind=EntryKind.SESSION)[0]
            return node_pb2.SubReply(session=outcome.session, index=outcome.index)
        named = (sub.session, sub.shard, sub.sequence)
        assert sub.session and sub.sequence > sub.low_water, "a command has a session and a sequence"
        assert self.bodies.setdefault(named, sub.body) == sub.body, f"{named} was regrouped"
        self._services[sub.capability].command(sub.body, sub.shard, self.shards)
        request = Request(
            capability=sub.capability,
            session=sub.session,
            sequence=sub.sequence,
            low_water=sub.low_water,
            body=sub.body,
            fences=sub.fences,
        )
        if sub.fences:
            fences.checked(request, sub.shard, self.shards, frozenset(), self.limits)
        outcome = world.entry(request)[0]
        self._wake(sub.shard)
        return node_pb2.SubReply(code=outcome.code, message=outcome.message, body=outcome.body, index=outcome.index)

    def _wake(self, shard: int) -> None:
        self._changed.pop(shard, asyncio.Event()).set()

    # -- streams -------------------------------------------------------------------------------------------------------

    async def watch_map(self, node: str, request: node_pb2.MapRequest) -> AsyncIterator[meta_pb2.ShardMap]:
        self.map_streams += 1
        self.map_requests.append((node, request))
        if node in self.down or not node:
            raise ChannelBroken("failed to connect", sent=False)
        told = request.above_epoch
        broken = self._broken.setdefault(node, asyncio.Event())
        while True:
            if self.known(node).epoch > told:
                told = self.known(node).epoch
                yield self.known(node)
            waiting = [asyncio.ensure_future(event.wait()) for event in (broken, self._pushed)]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waiting:
                    each.cancel()
            if broken.is_set():
                raise ChannelBroken("connection reset")

    async def watch(self, node: str, request: node_pb2.WatchRequest) -> AsyncIterator[node_pb2.WatchReply]:
        self.watches.append(request)
        if node in self.down:
            raise ChannelBroken("failed to connect", sent=False)
        await asyncio.sleep(RTT_S)
        world = self.worlds[request.shard]
        after = world.index if request.from_now else request.after_index
        try:
            if (code := self._misplaced(node, request.shard, request.shard_version)) is not None:
                raise TenfoldError(code)
            while True:
                if node in self.draining:
                    raise TenfoldError(Code.SHUTTING_DOWN)
                if self.leaders[request.shard] != node:
                    raise TenfoldError(Code.NOT_LEADER)
                capability = request.capability or "kv"
                found, told = world.applier.feed.read(
                    after, request.start, request.end, self.limits.watch_batch_bytes_max, capability
                )
                message = self._services[capability].event
                yield node_pb2.WatchReply(
                    index=max(told, after),
                    events=[message(index, key, event).SerializeToString() for index, _, key, event in found],
                )
                after = max(told, after)
                if not found:
                    await self._changed.setdefault(request.shard, asyncio.Event()).wait()
        except TenfoldError as error:
            reply = node_pb2.WatchReply(code=int(error.code), message=error.message)
            reply.floor = int(str(error.details.get("floor", 0)))
            reply.leader = self.leaders[request.shard]
            yield reply


class FakeChannel:
    """`node` is empty at an address where nobody listens."""

    def __init__(self, cluster: FakeCluster, node: str, address: str = "") -> None:
        self.cluster, self.node, self.address = cluster, node, address

    async def call(self, service: str, method: str, request: Any, *, timeout_s: float) -> Any:
        assert (service, method) == ("Node", "Call")
        return await self.cluster.call(self.node, request, timeout_s)

    def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        if method == "WatchMap":
            return self.cluster.watch_map(self.node, request)
        assert method == "Watch"
        return self.cluster.watch(self.node, request)

    def stream(self, service: str, method: str) -> Any:
        raise NotImplementedError("a client opens no such stream")

    async def close(self) -> None:
        self.cluster.closed.append(self.address)


def ops_of(sub: node_pb2.SubRequest) -> list[kv_pb2.KvOp]:
    return list(kv_pb2.KvCommand.FromString(sub.body).ops)
