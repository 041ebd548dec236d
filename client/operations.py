"""From what a caller says to the messages of the protocol, checked against the bounds before anything is sent. The texts are
the server's, which checks the same."""

from __future__ import annotations

from collections.abc import Sequence

from client.arguments import octets, whole
from client.results import (
    Compare,
    CompareAndDelete,
    CompareAndSet,
    Condition,
    Delete,
    Entry,
    Get,
    Increment,
    Key,
    Put,
    Value,
)
from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from proto.gen import kv_pb2
from proto.gen.kv_pb2 import KvCompare, KvOp

OP_BYTES = 16  # an operation's tags, lengths and numbers, at most
_NUMBER_MIN, _NUMBER_MAX = -(2**63), 2**63 - 1
_TARGETS = {condition: KvCompare.Target.Value(condition.name) for condition in Condition}
_VERSION_MAX = 2**64 - 1


class Operations:
    """Builds operations within `limits`. InvalidArgument names the field and the bound."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._key_max = limits.key_bytes_max
        self._value_max = limits.value_bytes_max

    def key(self, key: Key, where: str = "key") -> bytes:
        raw = key if type(key) is bytes else octets(key, where)
        if not 0 < len(raw) <= self._key_max:
            raise invalid(where, f"{len(raw)} bytes, must be 1 to {self._key_max}")
        return raw

    def value(self, value: Value, where: str = "value") -> bytes:
        raw = value if type(value) is bytes else octets(value, where)
        if len(raw) > self._value_max:
            raise invalid(where, f"{len(raw)} bytes, must be 0 to {self._value_max}")
        return raw

    def ttl(self, ttl_ms: int | None) -> int:
        if ttl_ms is None:
            return 0
        if not 1 <= whole(ttl_ms, "ttl_ms") <= self._limits.ttl_ms_max:
            raise invalid("ttl_ms", f"{ttl_ms}, must be 1 to {self._limits.ttl_ms_max}")
        return ttl_ms

    def put(self, key: Key, value: Value, ttl_ms: int | None) -> KvOp:
        op = KvOp(key=self.key(key), value=self.value(value))
        if ttl_ms is not None:
            op.ttl_ms = self.ttl(ttl_ms)
        return op

    def keyed(self, entry: Entry) -> tuple[bytes, KvOp, int]:
        """Key, operation and size. A plain put, which comes by the hundred, is built in one go."""
        if type(entry) is Put and entry.ttl_ms is None:
            key, value = entry.key, entry.value
            if isinstance(key, str):
                key = octets(key, "key")
            if isinstance(value, str):
                value = octets(value, "value")
            plain = type(key) is bytes and type(value) is bytes
            if plain and 0 < len(key) <= self._key_max and len(value) <= self._value_max:
                return key, KvOp(key=key, value=value), len(key) + len(value) + OP_BYTES
        op = self.op(entry)
        key = op.key
        return key, op, len(key) + len(op.value) + OP_BYTES

    def op(self, entry: Entry) -> KvOp:
        match entry:
            case Put():
                return self.put(entry.key, entry.value, entry.ttl_ms)
            case Delete():
                return KvOp(kind=KvOp.DELETE, key=self.key(entry.key))
            case Increment():
                if not _NUMBER_MIN <= whole(entry.delta, "delta") <= _NUMBER_MAX:
                    raise invalid("delta", f"{entry.delta}, must fit 64 bits with a sign")
                return KvOp(
                    kind=KvOp.INCREMENT, key=self.key(entry.key), delta=entry.delta, ttl_ms=self.ttl(entry.ttl_ms)
                )
            case CompareAndSet():
                return KvOp(
                    kind=KvOp.COMPARE_AND_SET,
                    key=self.key(entry.key),
                    value=self.value(entry.value),
                    expected_version=_version(entry.version),
                    ttl_ms=self.ttl(entry.ttl_ms),
                )
            case CompareAndDelete():
                return KvOp(
                    kind=KvOp.COMPARE_AND_DELETE, key=self.key(entry.key), expected_version=_version(entry.version)
                )
            case Get():
                return KvOp(kind=KvOp.GET, key=self.key(entry.key))
        raise invalid("entry", f"{type(entry).__name__} is no operation")

    def compare(self, compare: Compare) -> KvCompare:
        if compare.condition not in _TARGETS:
            raise invalid("condition", f"{compare.condition!r}, must be one of {', '.join(_TARGETS)}")
        built = KvCompare(target=_TARGETS[compare.condition], key=self.key(compare.key))
        by_value = compare.condition in (Condition.VALUE_EQUAL, Condition.VALUE_NOT_EQUAL)
        if by_value != isinstance(compare.operand, str | bytes):
            raise invalid("operand", f"{compare.condition} takes a {'value' if by_value else 'version'}")
        if isinstance(compare.operand, int):
            built.version = _version(compare.operand)
        else:
            built.value = self.value(compare.operand)
        return built

    def transaction(
        self, compares: Sequence[Compare], then: Sequence[Entry], otherwise: Sequence[Entry]
    ) -> kv_pb2.KvTransaction:
        bound = self._limits.transaction_ops_max
        if not 1 <= len(then) + len(otherwise) <= bound or len(compares) > bound:
            raise invalid(
                "transaction",
                f"{len(compares)} compares and {len(then) + len(otherwise)} operations, must be 0 to {bound} and 1 to {bound}",
            )
        built = kv_pb2.KvTransaction(
            compares=[self.compare(compare) for compare in compares],
            then_ops=[self.op(entry) for entry in then],
            else_ops=[self.op(entry) for entry in otherwise],
        )
        for branch in (built.then_ops, built.else_ops):
            written = [op.key for op in branch if op.kind != KvOp.GET]
            if len(set(written)) < len(written):
                raise invalid("transaction", "a key is written twice by one branch")
        return built

    def request(self, size: int, ops: int) -> None:
        """One caller's operations for one shard go together and must fit a sub-request."""
        if ops > self._limits.batch_ops_max:
            raise invalid("ops", f"{ops} in one shard, must be 1 to {self._limits.batch_ops_max}")
        if size > self._limits.request_bytes_max:
            raise invalid("ops", f"{size} bytes in one shard, must be 0 to {self._limits.request_bytes_max}")


def _version(version: int) -> int:
    if not 0 <= whole(version, "version") <= _VERSION_MAX:
        raise invalid("version", f"{version}, must be 0 to {_VERSION_MAX}")
    return version


def op_error(op: KvOp, result: kv_pb2.KvOpResult) -> TenfoldError:
    """The error of one operation of a batch; on VersionMismatch with `expected` and `found` in its details."""
    code = Code(result.code)
    if code is Code.VERSION_MISMATCH:
        return TenfoldError(
            code,
            f"version: {result.version or 'absent'} found, {op.expected_version or 'absent'} expected",
            expected=op.expected_version,
            found=result.version,
        )
    return TenfoldError(code)
