"""The key-value machine against a model: batches, transactions, expiry, reads by key and range, over restarts."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.errors import Code
from cluster.limits import Limits
from node.machines.kv import decode
from proto.gen.kv_pb2 import KvAnswer, KvCommand, KvCompare, KvOp, KvOpResult, KvResult, KvTransaction
from tests.machines.shard_world import KvModel, ShardWorld, drawn_limits, results_of

KEYS = st.sampled_from([b"a", b"aa", b"ab", b"b", b"b\x00", b"\x00", b"\xff", b"\xff\xff", b"d", b"x"])
VALUES = st.one_of(
    st.sampled_from(
        [b"", b"0", b"-7", b"007", b"+1", b"1_0", b" 1", b"%d" % (2**63 - 1), b"%d" % -(2**63), b"%d" % 2**63]
    ),
    st.binary(max_size=40),
)
TTLS = st.sampled_from([0, 0, 1, 50, 1000])
DELTAS = st.sampled_from([0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63)])
VERSIONS = st.integers(0, 12)
WRITES = ("PUT", "DELETE", "INCREMENT", "COMPARE_AND_SET", "COMPARE_AND_DELETE")


@st.composite
def operation(draw: st.DrawFn, kinds: tuple[str, ...] = WRITES) -> KvOp:
    kind = KvOp.Kind.Value(draw(st.sampled_from(kinds)))
    op = KvOp(kind=kind, key=draw(KEYS))
    if kind in (KvOp.PUT, KvOp.COMPARE_AND_SET):
        op.value = draw(VALUES)
    if kind in (KvOp.PUT, KvOp.COMPARE_AND_SET, KvOp.INCREMENT):
        op.ttl_ms = draw(TTLS)
    if kind in (KvOp.COMPARE_AND_SET, KvOp.COMPARE_AND_DELETE):
        op.expected_version = draw(VERSIONS)
    if kind == KvOp.INCREMENT:
        op.delta = draw(DELTAS)
    return op


def once_written(ops: list[KvOp]) -> bool:
    keys = [op.key for op in ops if op.kind != KvOp.GET]
    return len(keys) == len(set(keys))


BATCHES = st.lists(operation(), min_size=1, max_size=6).filter(once_written)
PLAIN = st.lists(operation(("PUT",)), min_size=1, max_size=6).filter(once_written)
BRANCHES = st.lists(operation((*WRITES, "GET", "GET")), max_size=5).filter(once_written)
COMPARES = st.lists(
    st.builds(KvCompare, target=st.sampled_from(KvCompare.Target.values()), key=KEYS, version=VERSIONS, value=VALUES),
    max_size=2,
)


def holds(compare: KvCompare, model: KvModel) -> bool:
    value, version, _ = model.rows.get(compare.key, (None, 0, 0))
    return {
        KvCompare.VERSION_EQUAL: version == compare.version,
        KvCompare.VERSION_NOT_EQUAL: version != compare.version,
        KvCompare.VERSION_LESS: version < compare.version,
        KvCompare.VERSION_GREATER: version > compare.version,
        KvCompare.VALUE_EQUAL: value == compare.value,
        KvCompare.VALUE_NOT_EQUAL: value != compare.value,
    }[compare.target]


def first_refusal(results: list[KvOpResult], read_bytes_max: int) -> int:
    """The code a transaction with these results ends with."""
    read_bytes = 0
    for result in results:
        read_bytes += len(result.value)
        if result.code or read_bytes > read_bytes_max:
            return result.code or Code.INVALID_ARGUMENT
    return 0


class KvAgainstModel(RuleBasedStateMachine):
    world: ShardWorld
    model: KvModel

    @initialize(limits=drawn_limits())
    def begin(self, limits: Limits) -> None:
        self.world = ShardWorld(limits)
        self.model = KvModel()

    @rule(ops=st.one_of(BATCHES, PLAIN))
    def batch(self, ops: list[KvOp]) -> None:
        outcome = self.world.kv(KvCommand(ops=ops))
        assert outcome.code == Code.OK
        assert results_of(outcome, ops) == [self.model.operate(op, self.world.index, self.world.time_ms) for op in ops]

    @rule(key=KEYS, value=VALUES, ttl_ms=TTLS, known=st.booleans())
    def compare_and_set(self, key: bytes, value: bytes, ttl_ms: int, known: bool) -> None:
        """As a client does it: with the version it has read."""
        expected = self.model.rows.get(key, (b"", 0, 0))[1] + (not known)
        op = KvOp(kind=KvOp.COMPARE_AND_SET, key=key, value=value, ttl_ms=ttl_ms, expected_version=expected)
        assert self.world.batch(op) == [self.model.operate(op, self.world.index, self.world.time_ms)]

    @rule(compares=COMPARES, then_ops=BRANCHES, else_ops=BRANCHES)
    def transaction(self, compares: list[KvCompare], then_ops: list[KvOp], else_ops: list[KvOp]) -> None:
        command = KvCommand(transaction=KvTransaction(compares=compares, then_ops=then_ops, else_ops=else_ops))
        before = self.world.contents()["kv"]
        outcome = self.world.kv(command)
        succeeded = all(holds(compare, self.model) for compare in compares)
        rows = dict(self.model.rows)
        chosen = then_ops if succeeded else else_ops
        expected = [self.model.operate(op, self.world.index, self.world.time_ms) for op in chosen]
        refusal = first_refusal(expected, self.world.limits.scan_bytes_max)
        if refusal:
            self.model.rows = rows
            assert self.world.contents()["kv"] == before
            assert outcome.code == refusal
        else:
            assert outcome.code == Code.OK
            assert KvResult.FromString(outcome.body) == KvResult(ops=expected, succeeded=succeeded)

    @rule(passed_ms=st.sampled_from([0, 1, 49, 500, 2000]))
    def time_passes(self, passed_ms: int) -> None:
        self.world.time_ms += passed_ms

    @rule()
    def expire(self) -> None:
        """Pulses as a leader proposes them, until none is due."""
        while self.world.applier.pulse_due(self.world.time_ms):
            size = len(self.world.views["kv"].pairs)
            self.world.pulse()
            assert size - len(self.world.views["kv"].pairs) <= 2 * self.world.limits.pulse_keys_max
        self.model.expire(self.world.time_ms)

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule(
        start=st.one_of(st.just(b""), KEYS),
        end=st.one_of(st.just(b""), KEYS),
        limit=st.integers(0, 4),
        reverse=st.booleans(),
        keys_only=st.booleans(),
        count_only=st.booleans(),
    )
    def scan(self, start: bytes, end: bytes, **options: Any) -> None:
        """All pages of a range, in turn."""
        rows = sorted((k, row) for k, row in self.model.rows.items() if start <= k and (not end or k < end))
        if options["reverse"]:
            rows.reverse()
        pages = list(self._pages(start, end, options))
        assert sum(page.count for page in pages) == len(rows)
        found = [item for page in pages for item in page.items]
        if options["count_only"]:
            assert found == []
        else:
            wanted = [(k, b"" if options["keys_only"] else v, version, ms) for k, (v, version, ms) in rows]
            assert [(item.key, item.value, item.version, item.expires_ms) for item in found] == wanted

    def _pages(self, start: bytes, end: bytes, options: dict[str, Any]) -> Any:
        limits = self.world.limits
        bound = limits.scan_count_keys_max if options["count_only"] else limits.scan_keys_max
        while True:
            page: KvAnswer = self.world.scan(start=start, end=end, **options)
            assert page.count <= min(bound, options["limit"] or bound)
            assert len(page.items) <= 1 or page.ByteSize() <= limits.scan_bytes_max + 100
            assert page.count > 0 or not page.more
            yield page
            if not page.more:
                return
            start, end = (start, page.next) if options["reverse"] else (page.next, end)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "world"):
            return
        pairs = self.world.views["kv"].scan(b"d", b"e")
        stored = {key[1:]: decode(record) for key, record in pairs}
        assert stored == {key: (version, ms, value) for key, (value, version, ms) in self.model.rows.items()}
        for key in (b"a", b"\xff"):
            value, version, expires_ms = self.model.rows.get(key, (b"", 0, 0))
            item = self.world.get(key)
            assert (item.value, item.version, item.expires_ms) == (value, version, expires_ms)


TestKvAgainstModel = KvAgainstModel.TestCase
TestKvAgainstModel.settings = settings(derandomize=True, deadline=None, max_examples=120, stateful_step_count=30)
