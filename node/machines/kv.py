"""The key-value machine: batches, transactions, expiry, reads by key and by range.

Laws: a key's version is the log index of its last write. A plain put writes one pair and reads nothing. Only an applied
pulse expires a key. A transaction changes everything it says or nothing.

The view holds `d` + key -> record and, for a record that expires, `x` + expires_ms (8 bytes) + key -> empty. A put does not
look for the expiry entry of what it replaces: a stale one is recognised at the pulse, since the record no longer names it.
A record is a format byte, the version, with format 2 the expiry in shard time, and the value; it is the put's event too.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ReadView, View
from node.machines.machine import Stamp
from proto.gen.kv_pb2 import (
    KeyValue,
    KvAnswer,
    KvCommand,
    KvCompare,
    KvEvent,
    KvGet,
    KvOp,
    KvOpResult,
    KvQuery,
    KvResult,
    KvScan,
    KvTransaction,
)

_PLAIN = 1
_EXPIRING = 2
_DELETED = b"D"
_EXPIRED = b"E"
_PLAIN_HEADER = struct.Struct(">BQ")
_EXPIRING_HEADER = struct.Struct(">BQQ")
_EXPIRY_KEY = struct.Struct(">cQ")
_EXPIRY_START, _EXPIRY_END = b"x", b"y"
_DATA_START, _DATA_END = b"d", b"e"
_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_NUMBER_MIN, _NUMBER_MAX = -(2**63), 2**63 - 1
_ITEM_OVERHEAD_BYTES = 24  # what an item's tags, lengths and version take in an answer, at most

_PUT = KvOp.PUT
_DELETE = KvOp.DELETE
_INCREMENT = KvOp.INCREMENT
_COMPARE_AND_SET = KvOp.COMPARE_AND_SET
_COMPARE_AND_DELETE = KvOp.COMPARE_AND_DELETE
_GET = KvOp.GET

Record = tuple[int, int, bytes]
"""(version, expires_ms or 0, value)."""


def decode(record: bytes) -> Record:
    if record[0] == _PLAIN:
        return _PLAIN_HEADER.unpack_from(record)[1], 0, record[9:]
    kind, version, expires_ms = _EXPIRING_HEADER.unpack_from(record)
    assert kind == _EXPIRING, f"record format {kind} is unknown"
    return version, expires_ms, record[17:]


def encode(version: int, expires_ms: int, value: bytes) -> bytes:
    if expires_ms:
        return _EXPIRING_HEADER.pack(_EXPIRING, version, expires_ms) + value
    return _PLAIN_HEADER.pack(_PLAIN, version) + value


def event_message(index: int, key: bytes, event: bytes) -> KvEvent:
    """The message for a change read from the feed."""
    if event == _DELETED:
        return KvEvent(kind=KvEvent.DELETE, key=key, version=index)
    if event == _EXPIRED:
        return KvEvent(kind=KvEvent.EXPIRE, key=key, version=index)
    version, _, value = decode(event)
    return KvEvent(kind=KvEvent.PUT, key=key, value=value, version=version)


class _Scratch:
    """What a transaction's branch would write, over the view: nothing reaches the view before every operation is known to
    succeed."""

    __slots__ = ("view", "writes")

    def __init__(self, view: View) -> None:
        self.view = view
        self.writes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.writes[key] if key in self.writes else self.view.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.writes[key] = value

    def delete(self, key: bytes) -> None:
        self.writes[key] = None

    def commit(self) -> None:
        for key, value in self.writes.items():
            if value is None:
                self.view.delete(key)
            else:
                self.view.put(key, value)


class KvMachine:
    name = "kv"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._earliest_ms: int | None = None  # no expiry entry of the view is earlier

    def load(self, view: View) -> None:
        self._earliest_ms = _first_expiry(view)

    def parse(self, body: bytes) -> KvCommand:
        return KvCommand.FromString(body)

    # ---- commands

    def apply(self, command: KvCommand, stamp: Stamp, view: View) -> KvResult | None:
        ops = command.ops
        if not ops:
            return self._transaction(command.transaction, stamp, view)
        header = _PLAIN_HEADER.pack(_PLAIN, stamp.index)
        put = view.put
        changed = stamp.changes.append
        done = 0
        for op in ops:
            if op.kind or op.ttl_ms:
                break
            key = op.key
            record = header + op.value
            put(b"d" + key, record)
            changed((key, record))
            done += 1
        else:
            return None
        results = [KvOpResult(version=stamp.index)] * done
        results += [self._operation(op, stamp, view) for op in ops[done:]]
        return KvResult(ops=results)

    def _transaction(self, transaction: KvTransaction, stamp: Stamp, view: View) -> KvResult:
        succeeded = all(_holds(compare, view) for compare in transaction.compares)
        branch, ops = ("then_ops", transaction.then_ops) if succeeded else ("else_ops", transaction.else_ops)
        scratch = _Scratch(view)
        trial = Stamp(stamp.index, stamp.term, stamp.time_ms, stamp.wall_ms)
        results: list[KvOpResult] = []
        read_bytes = 0
        for position, op in enumerate(ops):
            result = self._operation(op, trial, scratch)
            if result.code:
                code = Code(result.code)
                found = f", version {result.version}" if code is Code.VERSION_MISMATCH else ""
                raise TenfoldError(code, f"{branch}[{position}]: {code.name}{found}; nothing was changed")
            read_bytes += len(result.value)
            if read_bytes > self._limits.scan_bytes_max:
                bound = self._limits.scan_bytes_max
                raise TenfoldError(Code.INVALID_ARGUMENT, f"{branch}: reads over {bound} bytes; nothing was changed")
            results.append(result)
        scratch.commit()
        stamp.changes.extend(trial.changes)
        return KvResult(ops=results, succeeded=succeeded)

    def _operation(self, op: KvOp, stamp: Stamp, view: View | _Scratch) -> KvOpResult:
        kind, key = op.kind, op.key
        if kind == _PUT:
            return self._set(key, op.value, _expires(op, stamp), 0, stamp, view)
        record = view.get(b"d" + key)
        version, expires_ms, value = decode(record) if record is not None else (0, 0, b"")
        if kind == _GET:
            return KvOpResult(found=version > 0, version=version, value=value)
        if kind == _INCREMENT:
            return self._increment(op, version, expires_ms, value, stamp, view)
        if kind != _DELETE and version != op.expected_version:
            return KvOpResult(code=Code.VERSION_MISMATCH, version=version)
        if kind == _COMPARE_AND_SET:
            return self._set(key, op.value, _expires(op, stamp), expires_ms, stamp, view)
        assert kind in (_DELETE, _COMPARE_AND_DELETE), f"operation kind {kind} is unknown"
        if not version:
            return KvOpResult()
        view.delete(b"d" + key)
        if expires_ms:
            view.delete(_EXPIRY_KEY.pack(_EXPIRY_START, expires_ms) + key)
        stamp.changes.append((key, _DELETED))
        return KvOpResult(version=stamp.index, found=True)

    def _set(
        self, key: bytes, value: bytes, expires_ms: int, replaced_ms: int, stamp: Stamp, view: View | _Scratch
    ) -> KvOpResult:
        record = encode(stamp.index, expires_ms, value)
        view.put(b"d" + key, record)
        if replaced_ms and replaced_ms != expires_ms:
            view.delete(_EXPIRY_KEY.pack(_EXPIRY_START, replaced_ms) + key)
        if expires_ms and expires_ms != replaced_ms:
            view.put(_EXPIRY_KEY.pack(_EXPIRY_START, expires_ms) + key, b"")
            # A transaction that is refused may leave this too low: then one pulse finds nothing and corrects it.
            if self._earliest_ms is None or expires_ms < self._earliest_ms:
                self._earliest_ms = expires_ms
        stamp.changes.append((key, record))
        return KvOpResult(version=stamp.index)

    def _increment(
        self, op: KvOp, version: int, expires_ms: int, value: bytes, stamp: Stamp, view: View | _Scratch
    ) -> KvOpResult:
        number = 0
        if version:
            if not _NUMBER.fullmatch(value):
                return KvOpResult(code=Code.NOT_A_NUMBER, version=version)
            number = int(value)
            if not _NUMBER_MIN <= number <= _NUMBER_MAX:
                return KvOpResult(code=Code.NOT_A_NUMBER, version=version)
        number += op.delta
        if not _NUMBER_MIN <= number <= _NUMBER_MAX:
            return KvOpResult(code=Code.NUMBER_OVERFLOW, version=version)
        result = self._set(op.key, b"%d" % number, _expires(op, stamp) or expires_ms, expires_ms, stamp, view)
        result.number = number
        return result

    # ---- queries

    def query(self, request: KvQuery, view: ReadView, now_ms: int) -> KvAnswer:
        if request.WhichOneof("query") == "get":
            return self._get(request.get, view)
        return self._scan(request.scan, view)

    def _get(self, request: KvGet, view: ReadView) -> KvAnswer:
        answer = KvAnswer()
        add = answer.items.add
        room = self._limits.scan_bytes_max
        for key in request.keys:
            record = view.get(b"d" + key)
            version, expires_ms, value = decode(record) if record is not None else (0, 0, b"")
            room -= len(key) + len(value) + _ITEM_OVERHEAD_BYTES
            if room < 0 and answer.items:
                answer.more = True
                break
            add(key=key, value=value, version=version, expires_ms=expires_ms)
        return answer

    def _scan(self, scan: KvScan, view: ReadView) -> KvAnswer:
        limits = self._limits
        bound = limits.scan_count_keys_max if scan.count_only else limits.scan_keys_max
        bound = min(scan.limit or bound, bound)
        room = limits.scan_bytes_max
        answer = KvAnswer()
        count = 0
        last = b""
        start, end = b"d" + scan.start, b"d" + scan.end if scan.end else _DATA_END
        if start >= end:
            return answer
        for stored, record in view.scan(start, end, reverse=scan.reverse):
            key = stored[1:]
            if not scan.count_only:
                room -= len(key) + (0 if scan.keys_only else len(record)) + _ITEM_OVERHEAD_BYTES
            if count == bound or (room < 0 and count):
                answer.more = True
                answer.next = last if scan.reverse else key
                break
            count += 1
            last = key
            if not scan.count_only:
                version, expires_ms, value = decode(record)
                answer.items.append(
                    KeyValue(key=key, value=b"" if scan.keys_only else value, version=version, expires_ms=expires_ms)
                )
        answer.count = count
        return answer

    # ---- time

    def pulse_due(self, view: ReadView, now_ms: int) -> bool:
        return self._earliest_ms is not None and self._earliest_ms <= now_ms

    def pulse(self, stamp: Stamp, view: View) -> None:
        due: list[tuple[int, bytes, bytes]] = []
        for entry, _ in view.scan(_EXPIRY_START, _EXPIRY_KEY.pack(_EXPIRY_START, stamp.time_ms + 1)):
            due.append((_EXPIRY_KEY.unpack_from(entry)[1], entry[9:], entry))
            if len(due) == self._limits.pulse_keys_max:
                break
        for expires_ms, key, entry in due:
            view.delete(entry)
            record = view.get(b"d" + key)
            if record is not None and decode(record)[1] == expires_ms:
                view.delete(b"d" + key)
                stamp.changes.append((key, _EXPIRED))
        self._earliest_ms = _first_expiry(view)

    # ---- laws

    def check_invariants(self, view: ReadView) -> None:
        for stored, record in view.scan(_DATA_START, _DATA_END):
            version, expires_ms, _ = decode(record)
            assert len(stored) > 1, "a key is not empty"
            assert version > 0, f"{stored[1:]!r}: a version is a log index"
            if expires_ms:
                entry = _EXPIRY_KEY.pack(_EXPIRY_START, expires_ms) + stored[1:]
                assert view.get(entry) is not None, f"{stored[1:]!r}: a record that expires has its expiry entry"
        first = _first_expiry(view)
        if first is not None:
            assert self._earliest_ms is not None and self._earliest_ms <= first, "no expiry is missed"
        for stored, _ in view.scan(b"", b""):
            assert stored[:1] in (b"d", b"x"), f"{stored!r}: unknown kind of key"


def _first_expiry(view: ReadView) -> int | None:
    for entry, _ in view.scan(_EXPIRY_START, _EXPIRY_END):
        return int(_EXPIRY_KEY.unpack_from(entry)[1])
    return None


def _expires(op: KvOp, stamp: Stamp) -> int:
    return stamp.time_ms + op.ttl_ms if op.ttl_ms else 0


def _holds(compare: KvCompare, view: ReadView) -> bool:
    record = view.get(b"d" + compare.key)
    version, _, value = decode(record) if record is not None else (0, 0, b"")
    target: Any = compare.target
    if target == KvCompare.VERSION_EQUAL:
        return version == compare.version
    if target == KvCompare.VERSION_NOT_EQUAL:
        return version != compare.version
    if target == KvCompare.VERSION_LESS:
        return version < compare.version
    if target == KvCompare.VERSION_GREATER:
        return version > compare.version
    equal = record is not None and value == compare.value
    if target == KvCompare.VALUE_EQUAL:
        return equal
    assert target == KvCompare.VALUE_NOT_EQUAL, f"compare target {target} is unknown"
    return not equal
