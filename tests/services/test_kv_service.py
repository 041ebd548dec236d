"""What the key-value service refuses, with which code and words; what passes can be applied."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ring.ring import shard_of
from node.services.capability import CapabilityService
from node.services.kv import Service
from proto.gen.kv_pb2 import KvCommand, KvCompare, KvGet, KvOp, KvQuery, KvScan, KvTransaction
from tests.machines.shard_world import ShardWorld, drawn_limits, tiny

SHARDS = 12
LIMITS = tiny(batch_ops_max=8, transaction_ops_max=4)
KEY = b"{tag}a"
HOME = shard_of(KEY, SHARDS)
AWAY = next(b"%d" % n for n in range(100) if shard_of(b"%d" % n, SHARDS) != HOME)


def op(kind: str = "PUT", key: bytes = KEY, **fields: Any) -> KvOp:
    return KvOp(kind=KvOp.Kind.Value(kind), key=key, **fields)


def batch(*ops: KvOp) -> KvCommand:
    return KvCommand(ops=ops)


def transaction(**fields: Any) -> KvCommand:
    return KvCommand(transaction=KvTransaction(**fields))


def service(limits: Limits = LIMITS) -> CapabilityService:
    return Service(limits)


def refused(body: bytes, shard: int = HOME, *, query: bool = False) -> TenfoldError:
    with pytest.raises(TenfoldError) as raised:
        (service().query if query else service().command)(body, shard, SHARDS)
    return raised.value


UNKNOWN_KIND = KvCommand.FromString(b"\x0a\x0a\x08\x63\x12\x06" + KEY)  # kind 99
UNKNOWN_TARGET = KvCompare.FromString(b"\x08\x63\x12\x06" + KEY)

INVALID = [
    (batch(), "ops: 0, must be 1 to 8"),
    (batch(*(op(key=b"{tag}%d" % n) for n in range(9))), "ops: 9, must be 1 to 8"),
    (batch(op(), op(key=b"")), "ops[1].key: 0 bytes, must be 1 to 16"),
    (batch(op(key=b"{tag}" + b"k" * 12)), "ops[0].key: 17 bytes, must be 1 to 16"),
    (batch(op(value=b"v" * 65)), "ops[0].value: 65 bytes, must be 0 to 64"),
    (batch(op(ttl_ms=1001)), "ops[0].ttl_ms: 1001, must be 0 to 1000"),
    (batch(op("GET")), "ops[0].kind: GET is for a transaction's branches only"),
    (batch(op("DELETE", value=b"v")), "ops[0].value: not for DELETE"),
    (batch(op("DELETE", ttl_ms=1)), "ops[0].ttl_ms: not for DELETE"),
    (batch(op(expected_version=1)), "ops[0].expected_version: not for PUT"),
    (batch(op(delta=1)), "ops[0].delta: not for PUT"),
    (batch(op("INCREMENT", expected_version=1)), "ops[0].expected_version: not for INCREMENT"),
    (batch(op("COMPARE_AND_SET", delta=1)), "ops[0].delta: not for COMPARE_AND_SET"),
    (batch(op(), op("DELETE")), "ops: key b'{tag}a' is written twice"),
    (UNKNOWN_KIND, "ops[0].kind: 99 is unknown"),
    (KvCommand(ops=[op()], transaction=KvTransaction(then_ops=[op()])), "ops: a command is a batch or a transaction"),
    (transaction(), "transaction.then_ops: 0 and no else_ops"),
    (transaction(then_ops=[op("GET")] * 3, else_ops=[op("GET")] * 2), "transaction.then_ops: 5 with else_ops"),
    (transaction(compares=[KvCompare(key=KEY)] * 5, then_ops=[op()]), "transaction.compares: 5, must be 0 to 4"),
    (transaction(compares=[KvCompare()], then_ops=[op()]), "transaction.compares[0].key: 0 bytes, must be 1 to 16"),
    (
        transaction(compares=[KvCompare(key=KEY, value=b"v" * 65)], then_ops=[op()]),
        "transaction.compares[0].value: 65 bytes",
    ),
    (transaction(compares=[UNKNOWN_TARGET], then_ops=[op()]), "transaction.compares[0].target: 99 is unknown"),
    (transaction(then_ops=[op(), op()]), "transaction.then_ops: key b'{tag}a' is written twice"),
    (transaction(else_ops=[op("GET", value=b"v")]), "transaction.else_ops[0].value: not for GET"),
]


@pytest.mark.parametrize(("command", "words"), INVALID, ids=[words for _, words in INVALID])
def test_a_command_that_makes_no_sense_is_refused_by_field_and_bound(command: KvCommand, words: str) -> None:
    error = refused(command.SerializeToString())
    assert error.code is Code.INVALID_ARGUMENT and words in error.message


INVALID_QUERIES = [
    (KvQuery(), "query: must be get or scan"),
    (KvQuery(get=KvGet()), "get.keys: 0, must be 1 to 8"),
    (KvQuery(get=KvGet(keys=[KEY] * 9)), "get.keys: 9, must be 1 to 8"),
    (KvQuery(get=KvGet(keys=[KEY, b""])), "get.keys[1]: 0 bytes, must be 1 to 16"),
    (KvQuery(scan=KvScan(start=b"s" * 18)), "scan.start: 18 bytes, must be 0 to 17"),
    (KvQuery(scan=KvScan(end=b"s" * 18)), "scan.end: 18 bytes, must be 0 to 17"),
]


@pytest.mark.parametrize(("query", "words"), INVALID_QUERIES, ids=[words for _, words in INVALID_QUERIES])
def test_a_query_that_makes_no_sense_is_refused_by_field_and_bound(query: KvQuery, words: str) -> None:
    error = refused(query.SerializeToString(), query=True)
    assert error.code is Code.INVALID_ARGUMENT and words in error.message


@pytest.mark.parametrize("query", [False, True])
def test_a_malformed_or_too_large_body_is_refused(query: bool) -> None:
    for body, words in ((b"\xff\xff", "body: not a Kv"), (b"\0" * 4097, "body: 4097 bytes, must be 0 to 4096")):
        error = refused(body, query=query)
        assert error.code is Code.INVALID_ARGUMENT and words in error.message


def test_keys_of_another_shard_are_refused() -> None:
    away = shard_of(AWAY, SHARDS)
    for command, where in (
        (batch(op(), op(key=AWAY)), "ops[1].key"),
        (transaction(then_ops=[op(key=AWAY)]), "transaction.then_ops[0].key"),
        (transaction(compares=[KvCompare(key=AWAY)], else_ops=[op("GET", AWAY)]), "transaction.compares[0].key"),
    ):
        error = refused(command.SerializeToString())
        assert error.code is Code.WRONG_SHARD and error.message == f"{where}: lies in shard {away}, not {HOME}"
    error = refused(KvQuery(get=KvGet(keys=[KEY, AWAY])).SerializeToString(), query=True)
    assert error.code is Code.WRONG_SHARD and "get.keys[1]" in error.message


def test_a_transaction_over_shards_names_the_remedy() -> None:
    for command in (
        transaction(compares=[KvCompare(key=KEY)], then_ops=[op(key=AWAY)]),
        transaction(then_ops=[op()], else_ops=[op("GET", AWAY)]),
    ):
        error = refused(command.SerializeToString())
        assert error.code is Code.CROSS_SHARD and "hash tag" in error.message


@pytest.mark.parametrize("shard", [0, SHARDS + 1])
def test_a_shard_that_holds_no_keys_is_refused(shard: int) -> None:
    assert refused(batch(op()).SerializeToString(), shard).code is Code.WRONG_SHARD
    scan = KvQuery(scan=KvScan()).SerializeToString()
    assert refused(scan, shard, query=True).code is Code.WRONG_SHARD


def test_the_bounds_themselves_pass_and_the_write_set_is_what_may_be_written() -> None:
    keys = [b"{tag}" + b"%d" % n + b"k" * 10 for n in range(8)]
    command, written = service().command(
        batch(*(op(key=key, value=b"v" * 64, ttl_ms=1000) for key in keys)).SerializeToString(), HOME, SHARDS
    )
    assert written == set(keys) and len(command.ops) == 8
    both = transaction(
        compares=[KvCompare(key=b"{tag}c")],
        then_ops=[op(key=b"{tag}1"), op("GET", b"{tag}2")],
        else_ops=[op("DELETE", b"{tag}1"), op("DELETE", b"{tag}3")],
    )
    _, written = service().command(both.SerializeToString(), HOME, SHARDS)
    assert written == {b"{tag}1", b"{tag}3"}
    longest = KvScan(start=b"s" * 17, end=b"s" * 17, limit=2**32 - 1, keys_only=True, count_only=True)
    assert service().query(KvQuery(scan=longest).SerializeToString(), HOME, SHARDS).scan == longest


MESSY_OP = st.builds(
    lambda raw, **fields: KvOp(**{name: fields[name] for name in raw}),
    raw=st.sets(st.sampled_from(["kind", "key", "value", "ttl_ms", "delta", "expected_version"])).map(sorted),
    kind=st.sampled_from(KvOp.Kind.values()),
    key=st.binary(max_size=17),
    value=st.binary(max_size=66),
    ttl_ms=st.sampled_from([1, 1000, 2**64 - 1]),
    delta=st.sampled_from([1, 2**63 - 1, -(2**63)]),
    expected_version=st.sampled_from([1, 2**64 - 1]),
)
MESSY_OPS = st.lists(MESSY_OP, max_size=4)
MESSY = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda ops: KvCommand(ops=ops).SerializeToString(), MESSY_OPS),
    st.builds(lambda a, b: transaction(then_ops=a, else_ops=b).SerializeToString(), MESSY_OPS, MESSY_OPS),
)


@given(limits=drawn_limits(), bodies=st.lists(MESSY, max_size=5))
def test_what_passes_can_be_applied_and_what_does_not_is_an_error_of_the_table(
    limits: Limits, bodies: list[bytes]
) -> None:
    world = ShardWorld(limits)
    for body in bodies:
        try:
            command, written = service(limits).command(body, 1, 1)
        except TenfoldError as error:
            assert error.definite
            continue
        before = dict(world.views["kv"].scan(b"d", b"e"))
        outcome = world.kv(command)
        after = dict(world.views["kv"].scan(b"d", b"e"))
        changed = {key[1:] for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed <= written
        assert outcome.code in (Code.OK, Code.VERSION_MISMATCH, Code.NOT_A_NUMBER, Code.NUMBER_OVERFLOW, 1)
