"""The key-value facade. Every method may raise TenfoldError; see cluster/errors.py for what its code allows to conclude.

An operation ends ok, definitely failed (`error.definite`) or unknown: after DeadlineExceeded, UnknownOutcome, Unavailable or
SessionExpired a write may or may not have happened, exactly once at most. Calls that run concurrently have no order among them;
a call that begins after another has returned sees its effect (linearizable, the default).

A write with `if_fence`, a lock's name and token or what is held, is refused by StaleToken where a higher token of that lock was shown:
nothing was written. It is a request of its own, not joined with others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from client.arguments import each_of, octets
from client.fencing import Fenced, fences_of
from client.operations import OP_BYTES, Operations, op_error
from client.requests import Command, Get, Got, Write, Written
from client.results import (
    BatchResult,
    Compare,
    CompareAndDelete,
    CompareAndSet,
    Delete,
    Entry,
    Increment,
    Key,
    KvValue,
    OpResult,
    TransactionResult,
    Value,
    WriteEntry,
)
from client.scan import Count, Scan, ScanQuery
from client.surroundings import Surroundings
from client.watch import Watch
from cluster.errors import Code, TenfoldError, invalid
from cluster.ring.ring import shard_of
from proto.gen import kv_pb2, node_pb2
from proto.gen.entry_pb2 import Fence

Consistency = Literal["linearizable", "lease", "stale"]
"""linearizable; lease: the same while clocks drift less than declared, and cheaper; stale: any replica, says how stale."""

_CONSISTENCIES = {
    "linearizable": node_pb2.LINEARIZABLE,
    "lease": node_pb2.LEASE,
    "stale": node_pb2.STALE,
}


def consistency_of(name: str) -> node_pb2.Consistency.ValueType:
    try:
        return _CONSISTENCIES[name]
    except KeyError:
        raise invalid("consistency", f"{name!r}, must be one of {', '.join(_CONSISTENCIES)}") from None


class _Part:
    """What of a batch goes to one shard, and where its entries stood."""

    __slots__ = ("keys", "ops", "positions", "size")

    def __init__(self) -> None:
        self.ops: list[kv_pb2.KvOp] = []
        self.keys: list[bytes] = []
        self.positions: list[int] = []
        self.size = 0


class Kv:
    """`deadline_s` of a method, in seconds from now, replaces the client's."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._router, self._batcher = around.router, around.batcher
        self._operations = Operations(around.limits)

    # -- one key -------------------------------------------------------------------------------------------------------

    async def put(
        self,
        key: Key,
        value: Value,
        *,
        ttl_ms: int | None = None,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> int:
        """The version written."""
        results, offset, index = await self._write(self._operations.put(key, value, ttl_ms), if_fence, deadline_s)
        return index if results is None else results[offset].version

    async def get(
        self, key: Key, *, consistency: Consistency = "linearizable", deadline_s: float | None = None
    ) -> KvValue | None:
        """None where there is no such key."""
        raw = self._operations.key(key)
        got = await self._ask(self._router.shard_of(raw), [raw], consistency, deadline_s)
        item = got.items[got.offset]
        return KvValue(item.value, item.version, got.stale_ms) if item.version else None

    async def delete(self, key: Key, *, if_fence: Fenced | None = None, deadline_s: float | None = None) -> bool:
        """Whether the key was there."""
        results, offset, _ = await self._write(self._operations.op(Delete(key)), if_fence, deadline_s)
        return _required(results)[offset].found

    async def increment(
        self,
        key: Key,
        delta: int = 1,
        *,
        ttl_ms: int | None = None,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> int:
        """The new number. An absent key counts as 0; a value is decimal text. NotANumber, NumberOverflow."""
        op = self._operations.op(Increment(key, delta, ttl_ms))
        results, offset, _ = await self._write(op, if_fence, deadline_s)
        return _required(results)[offset].number

    async def compare_and_set(
        self,
        key: Key,
        value: Value,
        *,
        version: int,
        ttl_ms: int | None = None,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> int:
        """The version written, if the key's was `version` (0: absent). VersionMismatch, with `expected` and `found`."""
        op = self._operations.op(CompareAndSet(key, value, version, ttl_ms))
        results, offset, _ = await self._write(op, if_fence, deadline_s)
        return _required(results)[offset].version

    async def compare_and_delete(
        self, key: Key, *, version: int, if_fence: Fenced | None = None, deadline_s: float | None = None
    ) -> bool:
        """Deletes the key if its version is `version`; whether it was there. VersionMismatch as above."""
        op = self._operations.op(CompareAndDelete(key, version))
        results, offset, _ = await self._write(op, if_fence, deadline_s)
        return _required(results)[offset].found

    # -- many keys -----------------------------------------------------------------------------------------------------

    async def get_many(
        self, keys: Iterable[Key], *, consistency: Consistency = "linearizable", deadline_s: float | None = None
    ) -> list[KvValue | None]:
        """One answer per key, in order; each key is read on its own, not all at one moment."""
        wanted = [self._operations.key(key, f"keys[{position}]") for position, key in enumerate(each_of(keys, "keys"))]
        by_shard: dict[int, list[int]] = {}
        for position, key in enumerate(wanted):
            by_shard.setdefault(self._router.shard_of(key), []).append(position)
        bound = self._around.limits.batch_ops_max
        parts: list[tuple[list[int], Get]] = []
        for shard, positions in by_shard.items():
            for first in range(0, len(positions), bound):
                part = positions[first : first + bound]
                parts.append((part, self._get(shard, [wanted[each] for each in part], consistency, deadline_s)))
        answers: list[KvValue | None] = [None] * len(wanted)
        for positions, get in parts:
            got: Got = _checked(await get.future)
            for position, item in zip(positions, got.items[got.offset : got.offset + len(positions)], strict=True):
                if item.version:
                    answers[position] = KvValue(item.value, item.version, got.stale_ms)
        return answers

    async def batch(self, entries: Sequence[WriteEntry], *, deadline_s: float | None = None) -> list[BatchResult]:
        """One result per entry, in order, each with an error of its own. Atomic within a shard only: the entries of one shard
        are applied together, those of other shards apart. InvalidArgument (nothing is sent) if a key is written twice."""
        groups: dict[int, _Part] = {}
        shards, build = self._router.shards, self._operations.keyed
        for position, entry in enumerate(entries):
            key, op, size = build(entry)
            shard = shard_of(key, shards)
            part = groups.get(shard)
            if part is None:
                part = groups[shard] = _Part()
            part.ops.append(op)
            part.keys.append(key)
            part.positions.append(position)
            part.size += size
        for part in groups.values():
            if len(set(part.keys)) < len(part.keys):
                raise invalid("key", "written twice by one batch; a version names one write")
            self._operations.request(part.size, len(part.ops))
        deadline = self._around.deadline(deadline_s)
        writes: list[tuple[Write | TenfoldError, list[int]]] = []
        for shard, part in groups.items():
            writes.append((self._add(shard, part, deadline, first=not writes), part.positions))
        answers: list[Any] = [None] * len(entries)
        for write, positions in writes:
            outcome = await write.future if isinstance(write, Write) else write
            _spread(outcome, write.ops if isinstance(write, Write) else [], positions, answers)
        return answers

    def _add(self, shard: int, part: _Part, deadline: float, *, first: bool) -> Write | TenfoldError:
        """A shard's part of a batch. A full queue refuses the whole batch only while nothing of it is under way."""
        write = Write(self._around.future(), deadline, part.size, part.ops, part.keys)
        try:
            self._batcher.add(shard, write)
        except TenfoldError as error:
            if first:
                raise
            return error
        return write

    async def transaction(
        self,
        compares: Sequence[Compare],
        then: Sequence[Entry],
        otherwise: Sequence[Entry] = (),
        *,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> TransactionResult:
        """All compares hold: `then`, else: `otherwise`; all of the branch or nothing. CrossShard unless all keys lie in one
        shard (use one hash tag in {braces}). An operation that fails, fails the whole: VersionMismatch, NotANumber, ..."""
        return await self.fenced(compares, then, otherwise, fences_of(if_fence, self._around.limits), deadline_s)

    async def fenced(
        self,
        compares: Sequence[Compare],
        then: Sequence[Entry],
        otherwise: Sequence[Entry],
        fences: Sequence[Fence],
        deadline_s: float | None,
    ) -> TransactionResult:
        """A transaction under these fences. A lock whose fence says `holder` lies in the transaction's shard, else CrossShard."""
        built = self._operations.transaction(compares, then, otherwise)
        keys = [each.key for each in built.compares] + [op.key for op in (*built.then_ops, *built.else_ops)]
        shard = self._router.shard_of(keys[0])
        tied = [fence.name.encode() for fence in fences if fence.holder]
        for key in tied + keys:
            if self._router.shard_of(key) != shard:
                raise TenfoldError(Code.CROSS_SHARD, f"{key[:100]!r} lies in another shard than {keys[0][:100]!r}")
        body = kv_pb2.KvCommand(transaction=built).SerializeToString()
        reply = await self._command(shard, body, len(keys), fences, deadline_s)
        result = kv_pb2.KvResult.FromString(reply.body)
        ops = tuple(OpResult(op.version, op.found, op.number, op.value) for op in result.ops)
        return TransactionResult(result.succeeded, ops, reply.index)

    # -- ranges --------------------------------------------------------------------------------------------------------

    def scan(
        self,
        *,
        prefix: Key = b"",
        start: Key = b"",
        end: Key = b"",
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        cursor: str | None = None,
        consistency: Consistency = "linearizable",
        deadline_s: float | None = None,
    ) -> Scan:
        """Keys with `prefix`, or start <= key < end, in (reverse) key order over all shards: iterate it, or ask it for pages.

        Not a snapshot of the cluster: each page of each shard is consistent in itself, at an index the scan tells
        (`indexes`). A cursor goes on where an earlier scan with the same range and order stopped; InvalidCursor if it is of
        another query or cluster. The deadline is for each page.
        """
        query = ScanQuery.of(prefix, start, end, reverse=reverse, keys_only=keys_only)
        return Scan(self._around, query, limit, cursor, consistency_of(consistency), deadline_s)

    async def count(
        self,
        prefix: Key = b"",
        *,
        start: Key = b"",
        end: Key = b"",
        consistency: Consistency = "linearizable",
        deadline_s: float | None = None,
    ) -> int:
        """How many keys the range has, summed page by page (see `scan` on consistency); no key travels."""
        query = ScanQuery.of(prefix, start, end, reverse=False, keys_only=True)
        return await Count(self._around, query, consistency_of(consistency), deadline_s).total()

    def watch(self, key: Key | None = None, *, prefix: Key | None = None, token: str | None = None) -> Watch:
        """Changes of a key, or of all keys with a prefix (b"" is every key), in log order per shard, without gap or duplicate.

        `async with` or `await watch.start()` returns when every shard has confirmed where it starts: a write begun after that
        is surely seen. With the `token` of an event it goes on behind that event; InvalidCursor if the token is of another
        watch or cluster; Compacted, with `oldest_token`, if that history is gone.
        """
        if (key is None) == (prefix is None):
            raise invalid("key", "a watch has a key or a prefix")
        if key is not None:
            raw = self._operations.key(key)
            return Watch(self._around, raw, raw + b"\0", [self._router.shard_of(raw)], token)
        query = ScanQuery.of(octets(prefix, "prefix"), b"", b"", reverse=False, keys_only=False)
        return Watch(self._around, query.start, query.end, query.shards(self._router), token)

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _write(self, op: kv_pb2.KvOp, if_fence: Fenced | None, deadline_s: float | None) -> Written:
        key = op.key
        around = self._around
        if if_fence is not None:
            return await self._fenced(op, if_fence, deadline_s)
        size = len(key) + len(op.value) + OP_BYTES
        write = Write(around.future(), around.deadline(deadline_s), size, [op], [key])
        self._batcher.add(self._router.shard_of(key), write)
        written: Written = _checked(await write.future)
        if written.results is not None and written.results[written.offset].code:
            raise op_error(op, written.results[written.offset])
        return written

    async def _fenced(self, op: kv_pb2.KvOp, if_fence: Fenced, deadline_s: float | None) -> Written:
        fences = fences_of(if_fence, self._around.limits)
        body = kv_pb2.KvCommand(ops=[op]).SerializeToString()
        reply = await self._command(self._router.shard_of(op.key), body, 1, fences, deadline_s)
        results = kv_pb2.KvResult.FromString(reply.body).ops if reply.body else None
        if results and results[0].code:
            raise op_error(op, results[0])
        return Written(results or None, 0, reply.index)

    async def _command(
        self, shard: int, body: bytes, count: int, fences: Sequence[Fence], deadline_s: float | None
    ) -> node_pb2.SubReply:
        around = self._around
        command = Command(around.future(), around.deadline(deadline_s), "kv", body, count, fences)
        self._operations.request(command.size, count)
        self._batcher.add(shard, command)
        outcome = await command.future
        if isinstance(outcome, TenfoldError) and outcome.code is Code.STALE_TOKEN:
            presented = {fence.name: fence.token for fence in fences}
            raise TenfoldError(outcome.code, outcome.message, presented=presented)
        reply: node_pb2.SubReply = _checked(outcome)
        return reply

    def _get(self, shard: int, keys: list[bytes], consistency: Consistency, deadline_s: float | None) -> Get:
        around = self._around
        size = sum(map(len, keys)) + OP_BYTES * len(keys)
        get = Get(around.future(), around.deadline(deadline_s), size, keys, consistency_of(consistency))
        self._batcher.add(shard, get)
        return get

    async def _ask(self, shard: int, keys: list[bytes], consistency: Consistency, deadline_s: float | None) -> Got:
        got: Got = _checked(await self._get(shard, keys, consistency, deadline_s).future)
        return got


def _checked(outcome: Any) -> Any:
    if isinstance(outcome, TenfoldError):  # one for many callers: each raises a copy, with its own traceback
        raise TenfoldError(outcome.code, outcome.message, **outcome.details)
    return outcome


def _required(results: Sequence[kv_pb2.KvOpResult] | None) -> Sequence[kv_pb2.KvOpResult]:
    if results is None:
        raise TenfoldError(Code.INTERNAL, "the answer has no results")
    return results


def _spread(outcome: Written | TenfoldError, ops: list[kv_pb2.KvOp], positions: list[int], answers: list[Any]) -> None:
    """Puts one shard's outcome at its entries' places."""
    if isinstance(outcome, TenfoldError):
        failed = BatchResult(error=outcome)
        for position in positions:
            answers[position] = failed
        return
    results, offset, index = outcome
    if results is None:
        plain = BatchResult(index)
        for position in positions:
            answers[position] = plain
        return
    for at, position in enumerate(positions):
        result = results[offset + at]
        error = op_error(ops[at], result) if result.code else None
        answers[position] = BatchResult(0 if error else result.version, result.found, result.number, error)
