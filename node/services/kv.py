"""Checks key-value requests before they are proposed or asked.

Law: every key of a command routes to the shard it is sent to, and no key is written twice by one command, since a key's version
is the log index of its last write. A scan's range is not checked against the shard: a page holds what the shard has of it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from google.protobuf.message import DecodeError

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ring.ring import shard_of
from node.machines.kv import KvMachine, event_message
from proto.gen.kv_pb2 import KvCommand, KvCompare, KvOp, KvQuery, KvTransaction

_KINDS = frozenset(KvOp.Kind.values())
_TARGETS = frozenset(KvCompare.Target.values())
_GET = KvOp.GET
_CONDITIONAL = frozenset((KvOp.COMPARE_AND_SET, KvOp.COMPARE_AND_DELETE))
_WITH_VALUE = frozenset((KvOp.PUT, KvOp.COMPARE_AND_SET))
_WITH_TTL = frozenset((KvOp.PUT, KvOp.COMPARE_AND_SET, KvOp.INCREMENT))


class Service:
    name = "kv"
    client_commands = True
    event = staticmethod(event_message)

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def machine(self) -> KvMachine:
        return KvMachine(self._limits)

    # ---- commands

    def command(self, body: bytes, shard: int, shards: int) -> tuple[KvCommand, Set[bytes]]:
        self._check_body(body, shard, shards)
        try:
            command = KvCommand.FromString(body)
        except DecodeError:
            raise invalid("body", "not a KvCommand") from None
        if not command.HasField("transaction"):
            return command, self._batch(command.ops, len(body), shard, shards)
        if command.ops:
            raise invalid("ops", "a command is a batch or a transaction, not both")
        return command, self._transaction(command.transaction, shard, shards)

    def _batch(self, ops: Sequence[KvOp], body_bytes: int, shard: int, shards: int) -> Set[bytes]:
        limits = self._limits
        if not 1 <= len(ops) <= limits.batch_ops_max:
            raise invalid("ops", f"{len(ops)}, must be 1 to {limits.batch_ops_max}")
        key_bytes_max = limits.key_bytes_max
        values_fit = body_bytes <= limits.value_bytes_max
        written: set[bytes] = set()
        for position, op in enumerate(ops):
            key = op.key
            # One pass for the common operation; whatever else is looked at by `_check_op`, which knows the words.
            if not (
                op.kind == 0
                and not (op.ttl_ms or op.expected_version or op.delta)
                and 0 < len(key) <= key_bytes_max
                and (values_fit or len(op.value) <= limits.value_bytes_max)
            ):
                self._check_op(op, f"ops[{position}]", in_transaction=False)
            if shard_of(key, shards) != shard:
                raise _wrong_shard(f"ops[{position}].key", key, shard, shards)
            written.add(key)
        if len(written) < len(ops):
            raise _written_twice([op.key for op in ops], "ops")
        return written

    def _transaction(self, transaction: KvTransaction, shard: int, shards: int) -> Set[bytes]:
        bound = self._limits.transaction_ops_max
        compares, branches = transaction.compares, (transaction.then_ops, transaction.else_ops)
        if not (branches[0] or branches[1]):
            raise invalid("transaction.then_ops", f"0 and no else_ops, must be 1 to {bound} together")
        if len(compares) > bound:
            raise invalid("transaction.compares", f"{len(compares)}, must be 0 to {bound}")
        if len(branches[0]) + len(branches[1]) > bound:
            raise invalid("transaction.then_ops", f"{sum(map(len, branches))} with else_ops, must be 1 to {bound}")
        keys: list[tuple[str, bytes]] = []
        for position, compare in enumerate(compares):
            where = f"transaction.compares[{position}]"
            self._check_key(compare.key, f"{where}.key")
            if compare.target not in _TARGETS:
                raise invalid(f"{where}.target", f"{compare.target} is unknown")
            self._check_value(compare.value, f"{where}.value")
            keys.append((f"{where}.key", compare.key))
        written: set[bytes] = set()
        for name, ops in zip(("transaction.then_ops", "transaction.else_ops"), branches, strict=True):
            for position, op in enumerate(ops):
                self._check_op(op, f"{name}[{position}]", in_transaction=True)
                keys.append((f"{name}[{position}].key", op.key))
            branch = [op.key for op in ops if op.kind != _GET]
            if len(set(branch)) < len(branch):
                raise _written_twice(branch, name)
            written.update(branch)
        _check_one_shard(keys, shard, shards)
        return written

    def _check_op(self, op: KvOp, where: str, *, in_transaction: bool) -> None:
        kind = op.kind
        self._check_key(op.key, f"{where}.key")
        if kind not in _KINDS:
            raise invalid(f"{where}.kind", f"{kind} is unknown")
        if kind == _GET and not in_transaction:
            raise invalid(f"{where}.kind", "GET is for a transaction's branches only")
        self._check_value(op.value, f"{where}.value")
        name = KvOp.Kind.Name(kind)
        if op.value and kind not in _WITH_VALUE:
            raise invalid(f"{where}.value", f"not for {name}")
        if op.ttl_ms and kind not in _WITH_TTL:
            raise invalid(f"{where}.ttl_ms", f"not for {name}")
        if op.ttl_ms > self._limits.ttl_ms_max:
            raise invalid(f"{where}.ttl_ms", f"{op.ttl_ms}, must be 0 to {self._limits.ttl_ms_max}")
        if op.expected_version and kind not in _CONDITIONAL:
            raise invalid(f"{where}.expected_version", f"not for {name}")
        if op.delta and kind != KvOp.INCREMENT:
            raise invalid(f"{where}.delta", f"not for {name}")

    # ---- queries

    def query(self, body: bytes, shard: int, shards: int) -> KvQuery:
        self._check_body(body, shard, shards)
        try:
            query = KvQuery.FromString(body)
        except DecodeError:
            raise invalid("body", "not a KvQuery") from None
        which = query.WhichOneof("query")
        if which == "get":
            self._check_get(query.get.keys, shard, shards)
        elif which == "scan":
            # A bound of a range may be the successor of the longest key.
            for field in ("start", "end"):
                size, most = len(getattr(query.scan, field)), self._limits.key_bytes_max + 1
                if size > most:
                    raise invalid(f"scan.{field}", f"{size} bytes, must be 0 to {most}")
        else:
            raise invalid("query", "must be get or scan")
        return query

    def _check_get(self, keys: Sequence[bytes], shard: int, shards: int) -> None:
        bound = self._limits.batch_ops_max
        if not 1 <= len(keys) <= bound:
            raise invalid("get.keys", f"{len(keys)}, must be 1 to {bound}")
        for position, key in enumerate(keys):
            self._check_key(key, f"get.keys[{position}]")
            if shard_of(key, shards) != shard:
                raise _wrong_shard(f"get.keys[{position}]", key, shard, shards)

    # ---- what both share

    def _check_body(self, body: bytes, shard: int, shards: int) -> None:
        if len(body) > self._limits.request_bytes_max:
            raise invalid("body", f"{len(body)} bytes, must be 0 to {self._limits.request_bytes_max}")
        if not 1 <= shard <= shards:
            raise TenfoldError(Code.WRONG_SHARD, f"shard {shard} holds no keys; those of keys are 1 to {shards}")

    def _check_key(self, key: bytes, where: str) -> None:
        if not 1 <= len(key) <= self._limits.key_bytes_max:
            raise invalid(where, f"{len(key)} bytes, must be 1 to {self._limits.key_bytes_max}")

    def _check_value(self, value: bytes, where: str) -> None:
        if len(value) > self._limits.value_bytes_max:
            raise invalid(where, f"{len(value)} bytes, must be 0 to {self._limits.value_bytes_max}")


def _wrong_shard(where: str, key: bytes, shard: int, shards: int) -> TenfoldError:
    return TenfoldError(Code.WRONG_SHARD, f"{where}: lies in shard {shard_of(key, shards)}, not {shard}")


def _check_one_shard(keys: list[tuple[str, bytes]], shard: int, shards: int) -> None:
    first_where, first_key = keys[0]
    first = shard_of(first_key, shards)
    for where, key in keys:
        found = shard_of(key, shards)
        if found != first:
            message = f"{where}: lies in shard {found}, {first_where} in {first}; use one hash tag in {{braces}}"
            raise TenfoldError(Code.CROSS_SHARD, message)
    if first != shard:
        raise _wrong_shard(first_where, first_key, shard, shards)


def _written_twice(keys: list[bytes], where: str) -> TenfoldError:
    seen: set[bytes] = set()
    for key in keys:
        if key in seen:
            return invalid(where, f"key {key[:64]!r} is written twice; a key's version names one write")
        seen.add(key)
    raise AssertionError("no key is written twice")
