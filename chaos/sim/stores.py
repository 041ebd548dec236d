"""Two ways to the key-value store, both of them a `Store` of the workload.

`ClientStore` is a client's facade called from outside of its process, by all the roads that lead to one key: alone, in a
batch, in a transaction, through a scan. `RawStore` goes to a node by itself: it asks one replica and stays with it while
it answers, follows no hint, never tries again, and so puts every single answer on record. It also sends commands twice,
at once or later, to the same node or another: a sequence of a session has one answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from chaos.sim.channel import SimChannel
from chaos.sim.cluster import CLUSTER_ID, SimCluster
from chaos.sim.loop import Process, SimLoop
from chaos.workloads.kv import Value
from client.client import Client
from client.kv import Consistency
from client.results import Compare, CompareAndSet, Condition, Get, Put
from client.retry import of_call, of_code
from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from proto.gen import kv_pb2, node_pb2

IMPATIENT_SHARE = 0.01
IMPATIENT_S = 0.02
HURRIED_SHARE = 0.06
HURRIED_S = (0.05, 1.0)
OTHER_ROADS_SHARE = 0.3
RAW_S = (0.1, 0.8)
FAR_TTL_MS = 3_000_000
"""Beyond the end of any run."""

T = TypeVar("T")


class ClientStore:
    """Some callers lose patience and cancel: then nobody knows what became of the operation. Some have little time."""

    def __init__(self, loop: SimLoop, process: Process, client: Client, chance: random.Random) -> None:
        self._loop, self._process, self._kv, self._chance = loop, process, client.kv, chance

    async def put(self, key: str, value: str, *, deadline_s: float) -> int:
        return await self._call(self._put(key, value, self._time(deadline_s)), "put")

    async def get(self, key: str, *, deadline_s: float) -> Value | None:
        return await self._call(self._get(key, self._time(deadline_s)), "get")

    async def compare_and_set(self, key: str, value: str, *, version: int, deadline_s: float) -> int:
        return await self._call(self._cas(key, value, version, self._time(deadline_s)), "cas")

    async def _put(self, key: str, value: str, deadline_s: float) -> int:
        road = self._road(3)
        if road == 1:
            (result,) = await self._kv.batch([Put(key, value)], deadline_s=deadline_s)
            if result.error is not None:
                raise result.error
            return result.version
        if road == 2:
            return (await self._kv.transaction([], [Put(key, value)], deadline_s=deadline_s)).version
        return await self._kv.put(key, value, ttl_ms=FAR_TTL_MS if road == 3 else None, deadline_s=deadline_s)

    async def _get(self, key: str, deadline_s: float) -> Value | None:
        """By the lease every other time: it promises the same."""
        consistency: Consistency = "lease" if self._chance.random() < 0.5 else "linearizable"
        road = self._road(3)
        if road == 1:
            scan = self._kv.scan(start=key, end=key + "\0", consistency=consistency, deadline_s=deadline_s)
            return next(iter([item async for item in scan]), None)
        if road == 2:
            return (await self._kv.get_many([key], consistency=consistency, deadline_s=deadline_s))[0]
        if road == 3:
            result = await self._kv.transaction([], [Get(key)], deadline_s=deadline_s)
            found = result.results[0]
            return _Found(found.value, found.version) if found.found else None
        return await self._kv.get(key, consistency=consistency, deadline_s=deadline_s)

    async def _cas(self, key: str, value: str, version: int, deadline_s: float) -> int:
        road = self._road(2)
        if road == 1:
            (result,) = await self._kv.batch([CompareAndSet(key, value, version)], deadline_s=deadline_s)
            if result.error is not None:
                raise result.error
            return result.version
        if road == 2:
            compare = Compare(key, Condition.VERSION_EQUAL, version)
            done = await self._kv.transaction([compare], [Put(key, value)], [Get(key)], deadline_s=deadline_s)
            if done.succeeded:
                return done.version
            raise TenfoldError(Code.VERSION_MISMATCH, expected=version, found=done.results[0].version)
        return await self._kv.compare_and_set(key, value, version=version, deadline_s=deadline_s)

    def _road(self, others: int) -> int:
        """0 is the plain one."""
        return self._chance.randrange(1, others + 1) if self._chance.random() < OTHER_ROADS_SHARE else 0

    def _time(self, deadline_s: float) -> float:
        return self._chance.uniform(*HURRIED_S) if self._chance.random() < HURRIED_SHARE else deadline_s

    async def _call(self, work: Coroutine[Any, Any, T], name: str) -> T:
        task = self._loop.start(self._process, work, name)
        left = False

        def leave() -> None:
            nonlocal left
            left = task.cancel()

        if self._chance.random() < IMPATIENT_SHARE:
            self._loop.at(self._loop.now + self._chance.expovariate(1 / IMPATIENT_S), leave)
        try:
            return await task
        except asyncio.CancelledError:
            if not left or not task.cancelled():
                raise
            raise TenfoldError(Code.UNKNOWN_OUTCOME, "the caller lost patience") from None


class _Found(NamedTuple):
    value: bytes
    version: int


class RawStore:
    """For one shard; `breaches` are for people. Every method makes one attempt, whose answer is the operation's: TenfoldError."""

    def __init__(self, cluster: SimCluster, process: Process, shard: int, chance: random.Random) -> None:
        self.breaches: list[str] = []
        self._cluster, self._process, self._shard, self._chance = cluster, process, shard, chance
        self._channels: dict[str, SimChannel] = {}
        self._node = ""
        self._session = 0
        self._sequence = 0

    async def put(self, key: str, value: str, *, deadline_s: float) -> int:
        op = kv_pb2.KvOp(kind=kv_pb2.KvOp.PUT, key=key.encode(), value=value.encode())
        return (await self._in_process(self._write(op, deadline_s))).index

    async def compare_and_set(self, key: str, value: str, *, version: int, deadline_s: float) -> int:
        kind = kv_pb2.KvOp.COMPARE_AND_SET
        op = kv_pb2.KvOp(kind=kind, key=key.encode(), value=value.encode(), expected_version=version)
        reply = await self._in_process(self._write(op, deadline_s))
        result = kv_pb2.KvResult.FromString(reply.body).ops[0]
        if result.code:
            raise TenfoldError(Code(result.code), expected=version, found=result.version)
        return result.version

    async def get(self, key: str, *, deadline_s: float) -> Value | None:
        query = kv_pb2.KvQuery(get=kv_pb2.KvGet(keys=[key.encode()]))
        sub = node_pb2.SubRequest(
            shard=self._shard, capability="kv", mode=node_pb2.QUERY, body=query.SerializeToString()
        )
        sub.consistency = node_pb2.LEASE if self._chance.random() < 0.6 else node_pb2.LINEARIZABLE
        reply = await self._in_process(self._ask(sub, self._pick(), deadline_s))
        item = kv_pb2.KvAnswer.FromString(reply.body).items[0]
        return _Found(item.value, item.version) if item.version else None

    async def _in_process(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._cluster.loop.start(self._process, work, "raw call")

    # -- commands ------------------------------------------------------------------------------------------------------

    async def _write(self, op: kv_pb2.KvOp, deadline_s: float) -> node_pb2.SubReply:
        body = kv_pb2.KvCommand(ops=[op]).SerializeToString()
        sub = node_pb2.SubRequest(shard=self._shard, capability="kv", mode=node_pb2.COMMAND, body=body)
        if self._chance.random() < 0.3:
            return await self._ask(sub, self._pick(), deadline_s)
        if not self._session:
            await self._open(deadline_s)
        self._sequence += 1
        sub.session, sub.sequence, sub.low_water = self._session, self._sequence, self._sequence - 1
        nodes = [self._pick()]
        if self._chance.random() < 0.4:
            nodes.append(self._pick() if self._chance.random() < 0.5 else self._other())
        answers = await asyncio.gather(*(self._try(sub, node, deadline_s) for node in nodes))
        if not any(isinstance(each, node_pb2.SubReply) for each in answers):
            self._session = 0  # nobody knows: the sequence is not settled
        elif self._chance.random() < 0.2:
            task = asyncio.get_running_loop().create_task(self._again(sub, answers, deadline_s), name="sent twice")
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._one_of(sub, answers)

    async def _open(self, deadline_s: float) -> None:
        sub = node_pb2.SubRequest(shard=self._shard, capability="kv", mode=node_pb2.OPEN_SESSION)
        try:
            reply = await self._ask(sub, self._pick(), deadline_s)
        except TenfoldError:
            raise TenfoldError(Code.NOT_LEADER, "no session: nothing was sent") from None
        self._session, self._sequence = reply.session, 0

    async def _again(
        self, sub: node_pb2.SubRequest, answers: list[node_pb2.SubReply | TenfoldError], deadline_s: float
    ) -> None:
        """A copy that comes late: it may be answered as before, or not at all."""
        await asyncio.sleep(self._chance.expovariate(2.0))
        self._one_of(sub, [*answers, await self._try(sub, self._pick(), deadline_s)])

    async def _try(self, sub: node_pb2.SubRequest, node: str, deadline_s: float) -> node_pb2.SubReply | TenfoldError:
        try:
            return await self._ask(sub, node, deadline_s)
        except TenfoldError as error:
            return error

    def _one_of(self, sub: node_pb2.SubRequest, answers: list[node_pb2.SubReply | TenfoldError]) -> node_pb2.SubReply:
        """All good answers are one; without any, the worst error counts."""
        good = [each for each in answers if isinstance(each, node_pb2.SubReply)]
        if len({(each.index, each.body) for each in good}) > 1:
            told = ", ".join(f"{each.index} {each.body!r}" for each in good)
            self.breaches.append(
                f"shard {sub.shard}: sequence {sub.sequence} of session {sub.session} has answers {told}"
            )
        if good:
            return good[0]
        errors = [each for each in answers if isinstance(each, TenfoldError)]
        raise next((each for each in errors if not each.definite), errors[0])

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def _pick(self) -> str:
        if not self._node:
            self._node = self._chance.choice(self._cluster.holders(self._shard))
        return self._node

    def _other(self) -> str:
        return self._chance.choice(self._cluster.holders(self._shard))

    async def _ask(self, sub: node_pb2.SubRequest, node: str, deadline_s: float) -> node_pb2.SubReply:
        deadline_s = min(deadline_s, self._chance.uniform(*RAW_S))
        request = node_pb2.CallRequest(cluster_id=CLUSTER_ID, deadline_ms=int(deadline_s * 1000), requests=[sub])
        request.requests[0].shard_version = self._cluster.placed(sub.shard).version
        try:
            channel = self._channel(self._cluster.address_of(node))
            reply = await channel.call("Node", "Call", request, timeout_s=deadline_s + 0.25)
            answer: node_pb2.SubReply = reply.replies[0]
            if answer.code:
                raise of_code(answer.code, answer.message)
            return answer
        except (ChannelBroken, TimeoutError, TenfoldError) as failure:
            error, _ = of_call(failure)
            if self._chance.random() < (0.8 if error.code is Code.NOT_LEADER else 0.2):
                self._node = ""
            raise error from None

    def _channel(self, address: str) -> SimChannel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = SimChannel(self._cluster.network, address)
        return channel
