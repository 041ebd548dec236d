"""Fencing tokens with requests: a lower one is refused, over restarts too; a present holder's; a lock released with a write."""

from __future__ import annotations

from typing import Any

from cluster.errors import Code
from cluster.limits import DEFAULT
from node.machines.applier import Outcome
from proto.gen.entry_pb2 import Fence, Request
from proto.gen.kv_pb2 import KvCommand, KvCompare, KvOp, KvTransaction
from proto.gen.lock_pb2 import LockAcquire, LockEvent, LockForceRelease, LockRenew
from tests.machines.shard_world import ShardWorld, put, tiny


def write(shard: ShardWorld, *fences: Fence, key: bytes = b"k", session: int = 0, sequence: int = 0) -> Outcome:
    request = Request(capability="kv", body=KvCommand(ops=[put(key, b"v")]).SerializeToString(), fences=fences)
    request.session, request.sequence = session, sequence
    return shard.entry(request)[0]


def fence(token: int, name: str = "far", **fields: Any) -> Fence:
    return Fence(name=name, token=token, **fields)


def version(shard: ShardWorld) -> int:
    found: int = shard.get(b"k").version
    return found


def acquire(shard: ShardWorld, lease: int, **fields: Any) -> int:
    defaults: dict[str, Any] = {"name": "a", "attempt": 1, "owner": f"w{lease}", "ttl_ms": 1000, "new_lease": True}
    return shard.locked(acquire=LockAcquire(lease=lease, **{**defaults, **fields})).token


def test_a_token_lower_than_one_shown_is_refused_for_ever() -> None:
    shard = ShardWorld(DEFAULT)
    assert write(shard, fence(5)).code == Code.OK
    for restarts in (False, True):
        if restarts:
            shard.restart()
        outcome = write(shard, fence(4))
        assert outcome.code == Code.STALE_TOKEN and "'far'" in outcome.message and "5" in outcome.message
        assert version(shard) == 1, "nothing is changed"
    assert write(shard, fence(5)).code == write(shard, fence(6)).code == Code.OK
    assert write(shard, fence(5)).code == Code.STALE_TOKEN
    assert write(shard, fence(1, "other")).code == write(shard).code == Code.OK


def test_a_check_that_fails_shows_none_of_its_tokens() -> None:
    shard = ShardWorld(DEFAULT)
    write(shard, fence(5))
    assert write(shard, fence(9, "other"), fence(4)).code == Code.STALE_TOKEN
    assert write(shard, fence(1, "other")).code == Code.OK


def test_a_token_is_shown_whatever_the_command_says() -> None:
    shard = ShardWorld(DEFAULT)
    increment = KvOp(kind=KvOp.INCREMENT, key=b"k", delta=2**63 - 1)
    command = KvCommand(transaction=KvTransaction(then_ops=[increment, increment])).SerializeToString()
    shard.put(b"k", b"no number")
    outcome = shard.entry(Request(capability="kv", body=command, fences=[fence(5)]))[0]
    assert outcome.code == Code.NOT_A_NUMBER
    assert write(shard, fence(4)).code == Code.STALE_TOKEN


def test_a_retry_gets_its_first_answer() -> None:
    shard = ShardWorld(DEFAULT)
    session = shard.open()
    assert write(shard, fence(5), session=session, sequence=1).code == Code.OK
    write(shard, fence(6))
    assert write(shard, fence(5), session=session, sequence=1).code == Code.OK, (
        "it was applied before the higher one came"
    )
    assert write(shard, fence(5), session=session, sequence=2).code == Code.STALE_TOKEN
    assert write(shard, fence(9), session=session, sequence=2).code == Code.STALE_TOKEN


def test_fenced_names_are_bounded() -> None:
    shard = ShardWorld(tiny(fence_names_max=2))
    assert write(shard, fence(1, "a"), fence(1, "b")).code == Code.OK
    assert write(shard, fence(1, "c")).code == Code.LOCK_TABLE_FULL
    assert write(shard, fence(2, "b")).code == Code.OK
    held = acquire(shard, 1, name="d")
    assert write(shard, fence(held, "d", holder=True)).code == Code.OK, "a lock of this shard needs no room"


def test_a_name_that_is_not_shown_any_more_makes_room() -> None:
    limits = tiny(fence_names_max=2, fence_expiry_ms=8000, pulse_keys_max=1)
    shard = ShardWorld(limits)
    write(shard, fence(2**64 - 1, "a"), fence(1, "b"))
    assert write(shard, fence(3, "c")).code == Code.LOCK_TABLE_FULL
    shard.time_ms += 5000
    assert write(shard, fence(1, "b")).code == Code.OK, "shown again, under the same token"
    shard.restart()
    shard.time_ms += 3999
    assert not shard.applier.pulse_due(shard.time_ms)
    shard.pulse()
    assert write(shard, fence(3, "a")).code == Code.STALE_TOKEN
    shard.time_ms += 1
    assert shard.applier.pulse_due(shard.time_ms)
    shard.pulse()
    assert list(shard.views["fence"].pairs) == [b"b"]
    assert write(shard, fence(3, "a")).code == Code.OK
    shard.time_ms += 9000
    while shard.applier.pulse_due(shard.time_ms):
        shard.pulse()
    assert not shard.views["fence"].pairs


def test_who_shows_a_token_often_writes_it_seldom() -> None:
    shard = ShardWorld(tiny(fence_expiry_ms=8000), checked=False)
    view = shard.views["fence"]
    for at_ms, puts in ((0, 1), (999, 0), (1, 1), (999, 0)):
        shard.time_ms += at_ms
        view.reset()
        write(shard, fence(5))
        assert view.puts == puts


def test_in_its_own_shard_the_token_must_be_that_of_a_present_holder() -> None:
    shard = ShardWorld(DEFAULT)
    first = acquire(shard, 1)
    assert write(shard, fence(first, "a", holder=True)).code == Code.OK
    assert write(shard, fence(first + 1, "a", holder=True)).code == Code.STALE_TOKEN
    shard.locked(force_release=LockForceRelease(name="a"))
    assert write(shard, fence(first, "a", holder=True)).code == Code.STALE_TOKEN, "nobody holds it"
    second = acquire(shard, 2)
    assert write(shard, fence(first, "a", holder=True)).code == Code.STALE_TOKEN
    shard.restart()
    assert write(shard, fence(second, "a", holder=True)).code == Code.OK
    shard.time_ms += 1000
    assert write(shard, fence(second, "a", holder=True)).code == Code.STALE_TOKEN, "its lease has ended, pulse or not"


def test_a_lock_is_released_in_the_same_commit_as_a_write() -> None:
    shard = ShardWorld(DEFAULT)
    token = acquire(shard, 1)
    acquire(shard, 2, wait_ms=5000)
    assert write(shard, fence(token, "a", holder=True, release=True)).code == Code.OK
    events = [(event.kind, event.lease) for event in shard.told()]
    assert events == [(LockEvent.GRANTED, 2), (LockEvent.CHANGED, 0)]
    assert shard.get(b"k").version == shard.index
    assert write(shard, fence(token, "a", holder=True, release=True)).code == Code.STALE_TOKEN


def test_a_lease_that_has_nothing_left_ends_with_the_write() -> None:
    shard = ShardWorld(DEFAULT)
    first, second = acquire(shard, 1), acquire(shard, 1, name="b", attempt=2)
    assert write(shard, fence(first, "a", holder=True, release=True)).code == Code.OK
    assert shard.lock(renew=LockRenew(lease=1, ttl_ms=1000)).code == Code.OK, "it holds b"
    assert write(shard, fence(second, "b", holder=True, release=True)).code == Code.OK
    assert shard.lock(renew=LockRenew(lease=1, ttl_ms=1000)).code == Code.UNKNOWN_LEASE
    assert not shard.views["lock"].pairs


def test_only_its_principal_releases_a_lock_with_a_write() -> None:
    shard = ShardWorld(DEFAULT)
    shard.principal = "anna"
    token = acquire(shard, 1)
    assert write(shard, fence(token, "a", holder=True, release=True)).code == Code.NOT_HOLDER
    assert version(shard) == 0
    assert write(shard, fence(token, "a", holder=True)).code == Code.OK, "a token may be handed on"
    shard.principal = ""
    own = acquire(shard, 2, name="b")
    assert write(shard, fence(own, "b", holder=True, release=True)).code == Code.OK


def test_a_write_that_fails_releases_nothing() -> None:
    shard = ShardWorld(DEFAULT)
    shard.put(b"k", b"no number")
    token = acquire(shard, 1)
    increment = KvOp(kind=KvOp.INCREMENT, key=b"k", delta=1)
    compare = KvCompare(target=KvCompare.VERSION_GREATER, key=b"k", version=0)
    command = KvCommand(transaction=KvTransaction(compares=[compare], then_ops=[increment])).SerializeToString()
    request = Request(capability="kv", body=command, fences=[fence(token, "a", holder=True, release=True)])
    assert shard.entry(request)[0].code == Code.NOT_A_NUMBER
    assert write(shard, fence(token, "a", holder=True)).code == Code.OK


def test_requests_of_several_capabilities_in_one_entry_tell_each_lock_once() -> None:
    shard = ShardWorld(DEFAULT)
    token = acquire(shard, 1)
    body = KvCommand(ops=[put(b"k", b"v")]).SerializeToString()
    confirm = Request(capability="kv", body=body, fences=[fence(token, "a", holder=True, release=True)])
    plain = Request(capability="kv", body=KvCommand(ops=[put(b"l", b"v")]).SerializeToString())
    assert [each.code for each in shard.entry(confirm, plain)] == [Code.OK, Code.OK]
    assert [event.name for event in shard.told()] == ["a"]
    events, _ = shard.applier.feed.read(shard.index - 1, b"", b"", 10**6)
    assert [key for _, _, key, _ in events] == [b"k", b"l"]
