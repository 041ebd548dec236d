"""The requests of locks, each to one shard: what is said to the machine, and nothing about when or why.

Every method may raise TenfoldError as the table of errors says. Whether to ask again is for the caller: (lease, attempt) makes
an acquire, and an ended lease a release, the same however often they are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

from client.requests import Command, Query
from client.surroundings import Surroundings
from cluster.errors import TenfoldError
from proto.gen import lock_pb2, node_pb2
from proto.gen.lock_pb2 import (
    LockAcquire,
    LockAnswer,
    LockCheck,
    LockCommand,
    LockEdges,
    LockEndLease,
    LockForceRelease,
    LockList,
    LockQuery,
    LockRelease,
    LockRenew,
    LockResult,
)

CAPABILITY = "lock"


class Answered(NamedTuple):
    """`log_index`: of the command, or the applied index read at."""

    result: LockResult
    log_index: int


class LockCalls:
    def __init__(self, around: Surroundings) -> None:
        self.around = around

    def shard_of(self, name: str) -> int:
        return self.around.router.shard_of(name.encode())

    # -- commands ------------------------------------------------------------------------------------------------------

    def begin_acquire(self, shard: int, asked: LockAcquire, deadline_s: float) -> asyncio.Future[Any]:
        """Sends it; its future lives on when the caller has gone, so that what it does can be undone behind it."""
        return self._send(shard, LockCommand(acquire=asked), deadline_s)

    async def renew(self, shard: int, lease: int, ttl_ms: int, deadline_s: float) -> None:
        await self._command(shard, LockCommand(renew=LockRenew(lease=lease, ttl_ms=ttl_ms)), deadline_s)

    async def release(self, shard: int, asked: LockRelease, deadline_s: float | None) -> LockResult:
        return (await self._command(shard, LockCommand(release=asked), deadline_s)).result

    async def end_lease(self, shard: int, lease: int, deadline_s: float | None, *, unclean: bool) -> None:
        command = LockCommand(end_lease=LockEndLease(lease=lease, unclean=unclean))
        await self._command(shard, command, deadline_s)

    async def force_release(self, name: str, token: int, deadline_s: float | None) -> LockResult:
        command = LockCommand(force_release=LockForceRelease(name=name, token=token))
        return (await self._command(self.shard_of(name), command, deadline_s)).result

    def _send(self, shard: int, command: LockCommand, deadline_s: float | None) -> asyncio.Future[Any]:
        around = self.around
        body = command.SerializeToString()
        sent = Command(around.future(), around.deadline(deadline_s), CAPABILITY, body, 1)
        around.batcher.add(shard, sent)
        return sent.future

    async def _command(self, shard: int, command: LockCommand, deadline_s: float | None) -> Answered:
        return answered(await self._send(shard, command, deadline_s))

    # -- queries -------------------------------------------------------------------------------------------------------

    async def get(self, name: str, deadline_s: float | None = None) -> tuple[lock_pb2.LockState, int]:
        answer, index = await self._query(self.shard_of(name), LockQuery(get=name), deadline_s)
        return answer.locks[0] if answer.locks else lock_pb2.LockState(name=name), index

    async def page(self, shard: int, start: str, prefix: str, limit: int, deadline_s: float | None) -> LockAnswer:
        query = LockQuery(list=LockList(start=start, prefix=prefix, limit=limit))
        return (await self._query(shard, query, deadline_s))[0]

    async def check(self, shard: int, name: str, lease: int, attempt: int) -> Answered:
        query = LockQuery(check=LockCheck(name=name, lease=lease, attempt=attempt))
        answer, index = await self._query(shard, query, None)
        return Answered(answer.attempt, index)

    def begin_edges(self, shard: int, owners: Iterable[str]) -> asyncio.Future[Any]:
        """For whom these owners wait there; `edges_of` reads what comes."""
        return self._ask(shard, LockQuery(edges=LockEdges(owners=owners)), None)

    async def _query(self, shard: int, query: LockQuery, deadline_s: float | None) -> tuple[LockAnswer, int]:
        reply: node_pb2.SubReply = checked(await self._ask(shard, query, deadline_s))
        return LockAnswer.FromString(reply.body), reply.index

    def _ask(self, shard: int, query: LockQuery, deadline_s: float | None) -> asyncio.Future[Any]:
        around = self.around
        body = query.SerializeToString()
        deadline, room = around.deadline(deadline_s), around.limits.scan_bytes_max
        asked = Query(around.future(), deadline, CAPABILITY, body, node_pb2.LINEARIZABLE, room)
        around.batcher.add(shard, asked)
        return asked.future


def edges_of(outcome: Any) -> tuple[Iterable[lock_pb2.LockEdge], bool]:
    """And whether the answer was cut."""
    reply: node_pb2.SubReply = checked(outcome)
    answer = LockAnswer.FromString(reply.body)
    return answer.edges, answer.more


def answered(outcome: Any) -> Answered:
    reply: node_pb2.SubReply = checked(outcome)
    return Answered(LockResult.FromString(reply.body), reply.index)


def checked(outcome: Any) -> Any:
    if isinstance(outcome, TenfoldError):
        raise TenfoldError(outcome.code, outcome.message, **outcome.details)
    return outcome
