"""The client one writes first: one unary call per put, over one connection per node, each put under a session.

It is what `Client` is measured against. It is exactly-once as far as its sessions go and follows leaders, but joins nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from client.session import Session
from cluster.errors import Code, TenfoldError
from cluster.ports import Channel, Dial
from cluster.ring import ring, shard_map
from proto.gen import kv_pb2, meta_pb2, node_pb2

ATTEMPTS_MAX = 20
CALL_SECONDS = 10.0
CAPABILITY = "kv"


class PlainClient:
    """`async with PlainClient(addresses, dial) as client: await client.put(key, value)`."""

    def __init__(self, addresses: Sequence[str], dial: Dial) -> None:
        self._seed = addresses[0]
        self._dial = dial
        self._channels: dict[str, Channel] = {}
        self._map = meta_pb2.ShardMap()
        self._leaders: dict[int, str] = {}
        self._sessions: dict[int, Session] = {}

    async def __aenter__(self) -> PlainClient:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._close()

    async def _start(self) -> None:
        seed = self._channels[""] = self._dial(self._seed)
        async with aclosing(seed.replies("Node", "WatchMap", node_pb2.MapRequest())) as maps:  # type: ignore[type-var]
            self._map = await anext(maps)
        for member in self._map.members:
            self._channels[member.node] = self._dial(member.address)
        for each in self._map.shards[1:]:
            opened = await self._ask(node_pb2.SubRequest(shard=each.id, mode=node_pb2.OPEN_SESSION))
            self._sessions[each.id] = Session(opened.session)

    async def _close(self) -> None:
        for each in self._channels.values():
            await each.close()
        self._channels.clear()

    async def put(self, key: bytes, value: bytes) -> None:
        """TenfoldError; after an indefinite one the outcome is unknown."""
        shard = ring.shard_of(key, shard_map.data_shards(self._map))
        session = self._sessions[shard]
        sequence = session.issue()
        command = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=key, value=value)])
        request = node_pb2.SubRequest(
            shard=shard,
            mode=node_pb2.COMMAND,
            session=session.id,
            sequence=sequence,
            low_water=session.low_water,
            body=command.SerializeToString(),
        )
        try:
            await self._ask(request)
        finally:
            session.close(sequence)

    async def _ask(self, request: node_pb2.SubRequest) -> node_pb2.SubReply:
        """Sends it to the shard's leader, and again, under the same sequence, where the error table allows."""
        shard = self._map.shards[request.shard]
        request.capability = CAPABILITY
        request.shard_version = shard.version
        replicas = [each.node for each in shard.replicas]
        for attempt in range(ATTEMPTS_MAX):
            node = self._leaders.get(request.shard, replicas[attempt % len(replicas)])
            call = node_pb2.CallRequest(
                cluster_id=self._map.cluster_id, deadline_ms=int(CALL_SECONDS * 1000), requests=[request]
            )
            answer = await self._channels[node].call("Node", "Call", call, timeout_s=CALL_SECONDS)
            reply: node_pb2.SubReply = answer.replies[0]
            if reply.code == Code.OK:
                self._leaders[request.shard] = node
                return reply
            error = TenfoldError(Code(reply.code), reply.message)
            if not error.retriable:
                raise error
            self._leaders.pop(request.shard, None)
            if reply.leader in replicas:
                self._leaders[request.shard] = reply.leader
        raise error
