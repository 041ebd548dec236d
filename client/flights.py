"""Sub-requests: what is built from waiting operations and sent to a shard's node, and how its answer goes back to them.

The law of a command: it is frozen when it is built. (session, shard, sequence) names its operations for ever; a retry sends the
same body under the same sequence, and nothing joins or leaves. Queries have no effect and are taken apart and joined anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.requests import Command, Get, Got, Pending, Query, Write, Written
from client.session import Session
from cluster.errors import Code, TenfoldError
from proto.gen import entry_pb2, kv_pb2, node_pb2

ENVELOPE_BYTES = 96  # a sub-request around its body, generously


class Ledger:
    """Counts what this client holds, and ends each pending operation exactly once."""

    def __init__(self, ops_max: int, bytes_max: int) -> None:
        self.ops = 0
        self.bytes = 0
        self._ops_max, self._bytes_max = ops_max, bytes_max

    def admit(self, pending: Pending) -> None:
        """OVERLOADED when the bound is reached; nothing was sent."""
        if self.ops + pending.count > self._ops_max or self.bytes + pending.size > self._bytes_max:
            raise TenfoldError(
                Code.OVERLOADED, f"the client holds {self.ops} operations of {self.bytes} bytes; its queue is full"
            )
        self.ops += pending.count
        self.bytes += pending.size

    def finish(self, pending: Pending, outcome: object) -> None:
        if pending.left:
            return
        pending.left = True
        self.ops -= pending.count
        self.bytes -= pending.size
        assert self.ops >= 0 and self.bytes >= 0, "an operation leaves once"
        if not pending.future.done():
            pending.future.set_result(outcome)


class Flight:
    """A sub-request. `in_doubt`: an attempt may have had an effect. `error`: how the last attempt failed."""

    __slots__ = (
        "attempts",
        "capability",
        "deadline",
        "error",
        "in_doubt",
        "mode",
        "pending",
        "reply_bytes",
        "shard",
        "size",
    )

    def __init__(
        self,
        shard: int,
        mode: node_pb2.Mode.ValueType,
        capability: str,
        pending: Sequence[Pending],
        size: int,
        reply_bytes: int = 0,
    ) -> None:
        self.shard = shard
        self.mode = mode
        self.capability = capability
        self.pending = pending
        self.size = size + ENVELOPE_BYTES
        self.reply_bytes = reply_bytes + ENVELOPE_BYTES
        self.deadline = max([each.deadline for each in pending], default=0.0)
        self.attempts = 0
        self.in_doubt = False
        self.error: TenfoldError | None = None

    def fill(self, sub: node_pb2.SubRequest, shard_version: int) -> None:
        self.attempts += 1
        sub.shard = self.shard
        sub.shard_version = shard_version
        sub.capability = self.capability
        sub.mode = self.mode

    def deliver(self, reply: node_pb2.SubReply, ledger: Ledger) -> None:
        """Hands an OK reply to who waits."""
        raise NotImplementedError

    def close(self) -> None:
        """It will not be sent again."""


class OpenFlight(Flight):
    """Opens a session. A lost reply leaves a session behind at the server, which expires there."""

    __slots__ = ()

    def __init__(self, shard: int, capability: str, deadline: float) -> None:
        super().__init__(shard, node_pb2.OPEN_SESSION, capability, (), 0)
        self.deadline = deadline

    def deliver(self, reply: node_pb2.SubReply, ledger: Ledger) -> None:
        assert not self.pending


class CommandFlight(Flight):
    """A command under its sequence."""

    __slots__ = ("body", "fences", "sequence", "session")

    def __init__(
        self,
        shard: int,
        capability: str,
        session: Session,
        pending: Sequence[Pending],
        body: bytes,
        fences: Sequence[entry_pb2.Fence] = (),
        size: int = 0,
    ) -> None:
        super().__init__(shard, node_pb2.COMMAND, capability, pending, size or len(body))
        self.session = session
        self.sequence = session.issue()
        self.body = body
        self.fences = fences

    def fill(self, sub: node_pb2.SubRequest, shard_version: int) -> None:
        super().fill(sub, shard_version)
        assert self.sequence > self.session.low_water, "a closed sequence is never sent again"
        sub.session = self.session.id
        sub.sequence = self.sequence
        sub.low_water = self.session.low_water
        sub.body = self.body
        if self.fences:
            sub.fences.extend(self.fences)

    def deliver(self, reply: node_pb2.SubReply, ledger: Ledger) -> None:
        (command,) = self.pending
        ledger.finish(command, reply)

    def close(self) -> None:
        self.session.close(self.sequence)


class JoinedFlight(CommandFlight):
    """Operations of many callers in one command."""

    __slots__ = ()

    def deliver(self, reply: node_pb2.SubReply, ledger: Ledger) -> None:
        index = reply.index
        results = kv_pb2.KvResult.FromString(reply.body).ops if reply.body else None
        if not results:
            plain = Written(None, 0, index)
            for write in self.pending:
                ledger.finish(write, plain)
            return
        if len(results) != sum(write.count for write in self.pending):
            broken = TenfoldError(Code.INTERNAL, f"{len(results)} results for another number of operations")
            for write in self.pending:
                ledger.finish(write, broken)
            return
        offset = 0
        for write in self.pending:
            ledger.finish(write, Written(results, offset, index))
            offset += write.count


class GetFlight(Flight):
    """Reads of many callers in one query. The answer may stop early; `unanswered` are those to be asked again."""

    __slots__ = ("body", "consistency", "unanswered", "value_bytes")

    def __init__(
        self, shard: int, gets: list[Get], consistency: node_pb2.Consistency.ValueType, reply_bytes: int
    ) -> None:
        keys = gets[0].keys if len(gets) == 1 else [key for get in gets for key in get.keys]
        body = kv_pb2.KvQuery(get=kv_pb2.KvGet(keys=keys)).SerializeToString()
        super().__init__(shard, node_pb2.QUERY, "kv", gets, len(body), reply_bytes)
        self.consistency = consistency
        self.body = body
        self.value_bytes = 0  # on average, once answered
        self.unanswered: list[Pending] = []

    def fill(self, sub: node_pb2.SubRequest, shard_version: int) -> None:
        super().fill(sub, shard_version)
        sub.consistency = self.consistency
        sub.body = self.body

    def deliver(self, reply: node_pb2.SubReply, ledger: Ledger) -> None:
        items = kv_pb2.KvAnswer.FromString(reply.body).items
        answered = len(items)
        offset = 0
        for get in self.pending:
            assert isinstance(get, Get)
            end = offset + len(get.keys)
            if end > answered:
                get.items += items[offset:answered]
                get.keys = get.keys[max(0, answered - offset) :]
                self.unanswered.append(get)
            elif get.items:
                ledger.finish(get, Got(get.items + items[offset:end], 0, reply.index, reply.stale_ms))
            else:
                ledger.finish(get, Got(items, offset, reply.index, reply.stale_ms))
            offset = end
        self.value_bytes = len(reply.body) // max(1, answered)


class QueryFlight(Flight):
    """One query of one caller."""

    __slots__ = ("query",)

    def __init__(self, shard: int, query: Query) -> None:
        super().__init__(shard, node_pb2.QUERY, query.capability, (query,), query.size, query.reply_bytes)
        self.query = query

    def fill(self, sub: node_pb2.SubRequest, shard_version: int) -> None:
        super().fill(sub, shard_version)
        sub.consistency = self.query.consistency
        sub.body = self.query.body

    def deliver(self, reply: node_pb2.SubReply, ledger: Ledger) -> None:
        ledger.finish(self.query, reply)


class Join:
    """A command being built: writes of distinct keys within the bounds of one sub-request."""

    __slots__ = ("count", "ops_max", "size", "size_max", "writes")

    def __init__(self, ops_max: int, size_max: int) -> None:
        self.ops_max, self.size_max = ops_max, size_max
        self.writes: list[Write] = []
        self.count = 0
        self.size = 0

    def fits(self, write: Write) -> bool:
        return not self.writes or (self.count + write.count <= self.ops_max and self.size + write.size <= self.size_max)

    def add(self, write: Write) -> None:
        self.writes.append(write)
        self.count += write.count
        self.size += write.size

    def depart(self, shard: int, session: Session) -> JoinedFlight:
        ops = self.writes[0].ops if len(self.writes) == 1 else [op for write in self.writes for op in write.ops]
        return JoinedFlight(shard, "kv", session, self.writes, kv_pb2.KvCommand(ops=ops).SerializeToString())


def own_command(shard: int, session: Session, command: Command) -> CommandFlight:
    fences, size = command.fences, command.size
    return CommandFlight(shard, command.capability, session, (command,), command.body, fences, size)
