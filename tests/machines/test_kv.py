"""The key-value machine's promises, one by one: codes, cost of a put, expiry by pulses only, transactions, pages."""

from __future__ import annotations

import pytest

from cluster.errors import Code
from cluster.types import EntryKind
from node.machines.kv import event_message
from proto.gen.entry_pb2 import Request
from proto.gen.kv_pb2 import KvCommand, KvCompare, KvEvent, KvGet, KvOp, KvOpResult, KvQuery, KvResult, KvTransaction
from tests.machines.shard_world import ShardWorld, increment, kv_request, put, tiny


def cas(key: bytes, expected: int, value: bytes = b"", ttl_ms: int = 0) -> KvOp:
    return KvOp(kind=KvOp.COMPARE_AND_SET, key=key, expected_version=expected, value=value, ttl_ms=ttl_ms)


def delete(key: bytes) -> KvOp:
    return KvOp(kind=KvOp.DELETE, key=key)


def get(key: bytes) -> KvOp:
    return KvOp(kind=KvOp.GET, key=key)


def test_a_plain_put_is_one_write_and_no_read() -> None:
    world = ShardWorld(tiny(), checked=False)
    world.put(b"old", b"1")
    view = world.views["kv"]
    view.reset()
    outcome = world.kv(KvCommand(ops=[put(b"old", b"2"), put(b"new", b"3")]))
    assert (view.gets, view.scans, view.puts, view.deletes) == (0, 0, 2, 0)
    assert (outcome.code, outcome.body, outcome.index) == (Code.OK, b"", world.index)
    assert world.get(b"old").version == outcome.index


def test_a_failed_compare_fails_its_own_entry_only() -> None:
    world = ShardWorld(tiny())
    version = world.put(b"k", b"old")
    results = world.batch(put(b"a", b"1"), cas(b"k", version + 7, b"new"), cas(b"free", 0, b"2"), cas(b"none", 5))
    assert [result.code for result in results] == [0, Code.VERSION_MISMATCH, 0, Code.VERSION_MISMATCH]
    assert [result.version for result in results] == [world.index, version, world.index, 0]
    assert [world.get(key).value for key in (b"a", b"k", b"free")] == [b"1", b"old", b"2"]
    assert world.batch(cas(b"k", version, b"new"))[0].version == world.index == world.get(b"k").version


def test_delete_tells_whether_the_key_was_there() -> None:
    world = ShardWorld(tiny())
    version = world.put(b"k")
    assert world.batch(delete(b"none"))[0] == KvOpResult()
    mismatch = world.batch(KvOp(kind=KvOp.COMPARE_AND_DELETE, key=b"k", expected_version=version + 1))[0]
    assert mismatch == KvOpResult(code=Code.VERSION_MISMATCH, version=version)
    assert world.batch(delete(b"k"))[0] == KvOpResult(found=True, version=world.index)
    assert world.get(b"k").version == 0


@pytest.mark.parametrize(
    ("before", "delta", "code", "after"),
    [
        (None, -3, Code.OK, b"-3"),
        (b"0012", 1, Code.OK, b"13"),
        (b"9223372036854775806", 1, Code.OK, b"9223372036854775807"),
        (b"9223372036854775807", 1, Code.NUMBER_OVERFLOW, b"9223372036854775807"),
        (b"-9223372036854775808", -1, Code.NUMBER_OVERFLOW, b"-9223372036854775808"),
        (b"9223372036854775808", -1, Code.NOT_A_NUMBER, b"9223372036854775808"),
        (b"", 1, Code.NOT_A_NUMBER, b""),
        (b"-", 1, Code.NOT_A_NUMBER, b"-"),
        (b"1_0", 1, Code.NOT_A_NUMBER, b"1_0"),
        (b"1\n", 1, Code.NOT_A_NUMBER, b"1\n"),
        ("\u0663".encode(), 1, Code.NOT_A_NUMBER, "\u0663".encode()),
    ],
)
def test_increment(before: bytes | None, delta: int, code: Code, after: bytes) -> None:
    world = ShardWorld(tiny())
    if before is not None:
        world.put(b"n", before)
    result = world.batch(increment(b"n", delta), put(b"other"))[0]
    assert result.code == code and world.get(b"n").value == after
    assert code or result.number == int(after)
    assert world.get(b"other").version == world.index


def test_nothing_expires_but_by_a_pulse() -> None:
    world = ShardWorld(tiny())
    world.batch(put(b"k", b"v", ttl_ms=100))
    world.time_ms += 99
    assert not world.applier.pulse_due(world.time_ms)
    world.pulse()
    assert world.get(b"k").value == b"v"
    world.time_ms += 1
    assert world.applier.pulse_due(world.time_ms)
    world.put(b"other")
    assert world.get(b"k").expires_ms == 1100 and world.scan().count == 1  # past due and still served
    world.pulse()
    assert world.get(b"k").version == 0
    assert not world.applier.pulse_due(world.time_ms + 10**9)


def test_a_put_over_an_expiring_key_ends_its_expiry() -> None:
    world = ShardWorld(tiny(pulse_keys_max=5))
    world.batch(put(b"k", b"1", ttl_ms=100), put(b"later", b"1", ttl_ms=100))
    world.put(b"k", b"2")
    world.batch(put(b"later", b"2", ttl_ms=500))
    world.time_ms += 100
    world.pulse()
    assert world.get(b"k").value == b"2" and world.get(b"later").value == b"2"
    world.time_ms += 400
    world.pulse()
    assert world.get(b"k").value == b"2" and world.get(b"later").version == 0
    assert list(world.views["kv"].pairs) == [b"dk"]


def test_increment_keeps_the_expiry_unless_it_names_one() -> None:
    world = ShardWorld(tiny())
    world.batch(put(b"n", b"1", ttl_ms=100))
    world.batch(increment(b"n", 1))
    assert world.get(b"n").expires_ms == 1100
    world.batch(increment(b"n", 1, ttl_ms=300))
    assert world.get(b"n").expires_ms == 1300
    world.batch(cas(b"n", world.index, b"4"))
    assert world.get(b"n").expires_ms == 0


def test_a_pulse_is_bounded_and_the_earliest_go_first() -> None:
    world = ShardWorld(tiny(pulse_keys_max=2, scan_keys_max=10, scan_bytes_max=4096))
    for ttl_ms in (30, 10, 20):
        world.batch(put(b"%d" % ttl_ms, ttl_ms=ttl_ms))
    world.time_ms += 1000
    world.pulse()
    assert [item.key for item in world.scan().items] == [b"30"]
    assert world.applier.pulse_due(world.time_ms)
    world.pulse()
    assert world.scan().count == 0 and not world.applier.pulse_due(world.time_ms)


def test_the_earliest_expiry_survives_a_restart() -> None:
    world = ShardWorld(tiny())
    world.batch(put(b"k", ttl_ms=100))
    world.restart()
    assert not world.applier.pulse_due(1099) and world.applier.pulse_due(1100)


def test_shard_time_never_goes_back() -> None:
    world = ShardWorld(tiny())
    world.time_ms = 5000
    world.put(b"k")
    world.time_ms = 10  # a new leader's stamp
    world.batch(put(b"late", ttl_ms=100))
    assert world.applier.time_ms == 5000
    assert world.get(b"late").expires_ms == 5100


def transact(
    world: ShardWorld, compares: list[KvCompare], then_ops: list[KvOp], else_ops: list[KvOp] | None = None
) -> KvResult:
    command = KvCommand(transaction=KvTransaction(compares=compares, then_ops=then_ops, else_ops=else_ops or []))
    outcome = world.kv(command)
    assert outcome.code == Code.OK, outcome
    return KvResult.FromString(outcome.body)


def test_a_transaction_runs_one_branch_and_reads_its_own_writes() -> None:
    world = ShardWorld(tiny(scan_bytes_max=4096))
    version = world.put(b"k", b"1")
    free = KvCompare(target=KvCompare.VERSION_EQUAL, key=b"lock")
    result = transact(world, [free], [get(b"k"), increment(b"k", 4), get(b"k"), put(b"lock"), delete(b"z"), get(b"z")])
    assert result.succeeded
    assert [(r.value, r.version) for r in result.ops[:3]] == [(b"1", version), (b"", world.index), (b"5", world.index)]
    assert result.ops[5] == KvOpResult()
    result = transact(world, [free], [put(b"k", b"wrong")], [get(b"lock")])
    assert not result.succeeded and result.ops[0].found
    assert world.get(b"k").value == b"5"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (cas(b"k", 99, b"x"), Code.VERSION_MISMATCH),
        (KvOp(kind=KvOp.COMPARE_AND_DELETE, key=b"k", expected_version=99), Code.VERSION_MISMATCH),
        (increment(b"k", 1), Code.NOT_A_NUMBER),
        (increment(b"max", 1), Code.NUMBER_OVERFLOW),
        (get(b"big"), Code.INVALID_ARGUMENT),
    ],
)
def test_an_operation_that_fails_undoes_its_transaction(bad: KvOp, code: Code) -> None:
    world = ShardWorld(tiny(scan_bytes_max=64))
    version = world.put(b"k", b"text")
    world.put(b"max", b"%d" % (2**63 - 1))
    world.put(b"big", b"v" * 65)
    before = world.contents()
    ops = [put(b"new", b"1", ttl_ms=5), delete(b"max"), bad] if bad.key != b"max" else [put(b"new", ttl_ms=5), bad]
    outcome = world.kv(KvCommand(transaction=KvTransaction(then_ops=ops)))
    assert outcome.code == code and outcome.body == b"" and "nothing was changed" in outcome.message
    if code is Code.VERSION_MISMATCH:
        assert f"version {version}" in outcome.message
    assert world.contents() == before


def test_an_entry_with_a_refused_transaction_still_tells_the_rest() -> None:
    """The refused one leaves nothing in the feed, the others their changes."""
    world = ShardWorld(tiny())
    world.put(b"k", b"text")
    refused = KvCommand(transaction=KvTransaction(then_ops=[put(b"x"), increment(b"k", 1)]))
    bodies = [KvCommand(ops=[put(b"a")]), refused, KvCommand(ops=[put(b"b")])]
    outcomes = world.entry(*map(kv_request, bodies))
    assert [outcome.code for outcome in outcomes] == [Code.OK, Code.NOT_A_NUMBER, Code.OK]
    events, _ = world.applier.feed.read(world.index - 1, b"", b"", 4096)
    assert [key for _, _, key, _ in events] == [b"a", b"b"]


def test_a_get_of_many_keys_stops_when_the_answer_is_full() -> None:
    world = ShardWorld(tiny(scan_bytes_max=250))
    for key in (b"a", b"b", b"c"):
        world.put(key, key * 100)
    keys = [b"a", b"none", b"b", b"c"]
    found = []
    rounds = 0
    while keys:
        answer = world.applier.query("kv", KvQuery(get=KvGet(keys=keys)))
        assert answer.more == (len(answer.items) < len(keys)) and answer.items
        found += [(item.key, item.value[:1]) for item in answer.items]
        keys = keys[len(answer.items) :]
        rounds += 1
    assert found == [(b"a", b"a"), (b"none", b""), (b"b", b"b"), (b"c", b"c")] and rounds == 2


def test_a_page_always_gives_a_key_however_large_its_value() -> None:
    world = ShardWorld(tiny(scan_bytes_max=64, scan_keys_max=10))
    world.put(b"a", b"v" * 500)
    world.put(b"b", b"v" * 500)
    page = world.scan()
    assert [item.key for item in page.items] == [b"a"] and page.more and page.next == b"b"
    page = world.scan(reverse=True)
    assert [item.key for item in page.items] == [b"b"] and page.more and page.next == b"b"


def test_events_become_messages() -> None:
    world = ShardWorld(tiny())
    world.batch(put(b"k", b"1", ttl_ms=50))
    world.time_ms += 50
    world.pulse()
    world.put(b"k", b"2")
    world.batch(delete(b"k"))
    events, told = world.applier.feed.read(0, b"", b"", 4096)
    assert told == 4
    assert [event_message(index, key, event) for index, _, key, event in events] == [
        KvEvent(kind=KvEvent.PUT, key=b"k", value=b"1", version=1),
        KvEvent(kind=KvEvent.EXPIRE, key=b"k", version=2),
        KvEvent(kind=KvEvent.PUT, key=b"k", value=b"2", version=3),
        KvEvent(kind=KvEvent.DELETE, key=b"k", version=4),
    ]


def test_reserved_kinds_of_entries_stop_the_replica() -> None:
    world = ShardWorld(tiny())
    with pytest.raises(AssertionError, match="reserved"):
        world.entry(kind=EntryKind.PREPARE)


def test_an_unreadable_command_in_the_log_stops_the_replica() -> None:
    """It was validated before it was proposed: to skip it would make replicas differ."""
    world = ShardWorld(tiny())
    with pytest.raises(Exception, match="parsing"):
        world.entry(Request(capability="kv", body=b"\xff\xff"))
