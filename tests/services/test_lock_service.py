"""What the lock service and the check of fences refuse, with which code and words; what passes can be applied."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ring.ring import shard_of
from node.machines.lock import event_message
from node.services import fences
from node.services.capability import CapabilityService
from node.services.lock import Service, written
from proto.gen.entry_pb2 import Fence, Request
from proto.gen.lock_pb2 import (
    SEMAPHORE,
    SHARED,
    LockAcquire,
    LockCheck,
    LockCommand,
    LockEdges,
    LockEndLease,
    LockEvent,
    LockForceRelease,
    LockList,
    LockQuery,
    LockRelease,
    LockRenew,
)
from tests.machines.shard_world import ShardWorld, tiny

SHARDS = 12
LIMITS = tiny(lock_name_bytes_max=16, lock_permits_max=8, fences_max=2, lock_ttl_ms_min=100, request_bytes_max=8192)
NAME = "{tag}a"
HOME = shard_of(NAME.encode(), SHARDS)
AWAY = next(str(n) for n in range(100) if shard_of(str(n).encode(), SHARDS) != HOME)


def service(limits: Limits = LIMITS) -> CapabilityService:
    return Service(limits)


def acquire(**fields: Any) -> LockCommand:
    defaults: dict[str, Any] = {"name": NAME, "lease": 1, "owner": "me", "ttl_ms": 1000}
    return LockCommand(acquire=LockAcquire(**{**defaults, **fields}))


def refused(body: bytes, shard: int = HOME, *, query: bool = False) -> TenfoldError:
    with pytest.raises(TenfoldError) as raised:
        (service().query if query else service().command)(body, shard, SHARDS)
    return raised.value


UNKNOWN_MODE = LockAcquire.FromString(
    LockAcquire(name=NAME, lease=1, owner="me", ttl_ms=1000).SerializeToString() + b"\x30\x63"
)

INVALID = [
    (LockCommand(), "command: must be one of acquire, renew, release, end_lease, force_release"),
    (acquire(name=""), "acquire.name: 0 bytes, must be 1 to 16"),
    (acquire(name="{tag}" + "ü" * 6), "acquire.name: 17 bytes, must be 1 to 16"),
    (acquire(name="{tag}\0"), "acquire.name: character 5 (U+0000) is one of control or format"),
    (acquire(lease=0), "acquire.lease: 0, must be 1 or more"),
    (acquire(owner=""), "acquire.owner: 0 bytes, must be 1 to 16"),
    (acquire(owner="o" * 17), "acquire.owner: 17 bytes, must be 1 to 16"),
    (acquire(owner="a\n"), "acquire.owner: character 1 (U+000A) is one of control or format"),
    (acquire(name="a\u0085"), "acquire.name: character 1 (U+0085) is one of control or format"),
    (acquire(name="a\u202eb"), "acquire.name: character 1 (U+202E) is one of control or format"),
    (acquire(owner="\u2028"), "acquire.owner: character 0 (U+2028) is one of control or format"),
    (acquire(metadata=b"m" * 9), "acquire.metadata: 9 bytes, must be 0 to 8"),
    (LockCommand(acquire=UNKNOWN_MODE), "acquire.mode: 99 is unknown"),
    (acquire(capacity=1), "acquire.capacity: 1, is for SEMAPHORE only"),
    (acquire(mode=SHARED, permits=2), "acquire.permits: 2, is for SEMAPHORE only"),
    (acquire(mode=SEMAPHORE), "acquire.capacity: 0, must be 1 to 8"),
    (acquire(mode=SEMAPHORE, capacity=9), "acquire.capacity: 9, must be 1 to 8"),
    (acquire(mode=SEMAPHORE, capacity=2, permits=3), "acquire.permits: 3, must be 0 to 2, the capacity"),
    (acquire(ttl_ms=99), "acquire.ttl_ms: 99, must be 100 to 1000"),
    (acquire(ttl_ms=1001), "acquire.ttl_ms: 1001, must be 100 to 1000"),
    (acquire(wait_ms=1001), "acquire.wait_ms: 1001, must be 0 to 1000"),
    (acquire(delay_ms=101), "acquire.delay_ms: 101, must be 0 to 100"),
    (LockCommand(renew=LockRenew(ttl_ms=100)), "renew.lease: 0, must be 1 or more"),
    (LockCommand(renew=LockRenew(lease=1)), "renew.ttl_ms: 0, must be 100 to 1000"),
    (LockCommand(release=LockRelease(lease=1)), "release.name: 0 bytes, must be 1 to 16"),
    (LockCommand(release=LockRelease(name=NAME)), "release.lease: 0, must be 1 or more"),
    (
        LockCommand(release=LockRelease(name=NAME, lease=1, reason="r" * 4097)),
        "release.reason: 4097 bytes, must be 1 to 4096",
    ),
    (
        LockCommand(release=LockRelease(name=NAME, lease=1, reason="a: x\x1b -> y")),
        "release.reason: character 4 (U+001B) is one of control or format",
    ),
    (LockCommand(end_lease=LockEndLease()), "end_lease.lease: 0, must be 1 or more"),
    (LockCommand(force_release=LockForceRelease()), "force_release.name: 0 bytes, must be 1 to 16"),
]

INVALID_QUERIES = [
    (LockQuery(), "query: must be one of get, list, check, edges"),
    (LockQuery(get="{tag}\x7f"), "get: character 5 (U+007F) is one of control or format"),
    (LockQuery(check=LockCheck(name=NAME)), "check.lease: 0, must be 1 or more"),
    (LockQuery(list=LockList(start="s" * 17)), "list.start: 17 bytes, must be 1 to 16"),
    (LockQuery(list=LockList(prefix="s" * 17)), "list.prefix: 17 bytes, must be 1 to 16"),
    (LockQuery(edges=LockEdges()), "edges.owners: 0, must be 1 to 1"),
    (LockQuery(edges=LockEdges(owners=[""])), "edges.owners[0]: 0 bytes, must be 1 to 16"),
]


@pytest.mark.parametrize(("command", "message"), INVALID, ids=[message[:40] for _, message in INVALID])
def test_what_makes_no_sense_is_refused_by_name_and_bound(command: LockCommand, message: str) -> None:
    error = refused(command.SerializeToString())
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(("query", "message"), INVALID_QUERIES, ids=[message[:40] for _, message in INVALID_QUERIES])
def test_a_query_that_makes_no_sense_too(query: LockQuery, message: str) -> None:
    error = refused(query.SerializeToString(), query=True)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


def test_what_cannot_be_read_or_is_too_large() -> None:
    for query in (False, True):
        assert "not a Lock" in refused(b"\xff", query=query).message
        assert "must be 0 to" in refused(b"x" * (LIMITS.request_bytes_max + 1), query=query).message


def test_a_name_lies_in_its_shard() -> None:
    for body, query in (
        (acquire(name=AWAY), False),
        (LockCommand(release=LockRelease(name=AWAY, lease=1)), False),
        (LockQuery(get=AWAY), True),
    ):
        error = refused(body.SerializeToString(), query=query)
        assert error.code == Code.WRONG_SHARD and f"not {HOME}" in error.message
    assert refused(acquire().SerializeToString(), 0).code == Code.WRONG_SHARD
    assert refused(LockQuery(list=LockList()).SerializeToString(), SHARDS + 1, query=True).code == Code.WRONG_SHARD


def test_what_a_command_writes_keeps_requests_of_one_lock_apart() -> None:
    def writes(command: LockCommand) -> Any:
        return service().command(command.SerializeToString(), HOME, SHARDS)[1]

    assert writes(acquire()) == writes(LockCommand(release=LockRelease(name=NAME, lease=1))) == {written(NAME)}
    assert writes(LockCommand(force_release=LockForceRelease(name=NAME))) == {written(NAME)}
    assert writes(LockCommand(renew=LockRenew(lease=1, ttl_ms=100))) == set()
    assert writes(LockCommand(end_lease=LockEndLease(lease=1))) is None, "whatever the lease holds"


def test_what_passes_can_be_applied_and_told() -> None:
    world = ShardWorld(LIMITS)
    command, _ = service().command(acquire(new_lease=True, metadata=b"\0").SerializeToString(), HOME, SHARDS)
    assert world.lock(acquire=command.acquire).code == Code.OK
    for query in (LockQuery(get=NAME), LockQuery(list=LockList()), LockQuery(check=LockCheck(name=NAME, lease=1))):
        asked = service().query(query.SerializeToString(), HOME, SHARDS)
        world.applier.query("lock", asked)
    assert service().event is event_message and world.told()[0].kind == LockEvent.CHANGED


# ---- fences


def fenced(*tokens: Fence, writes: Any = frozenset()) -> tuple[Request, Any]:
    request = Request(fences=tokens)
    return request, fences.checked(request, HOME, SHARDS, writes, LIMITS)


def fence(name: str = NAME, token: int = 1, **fields: Any) -> Fence:
    return Fence(name=name, token=token, **fields)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([fence(), fence(AWAY), fence("x")], "fences: 3, must be 0 to 2"),
        ([fence("")], "fences[0].name: 0 bytes, must be 1 to 16"),
        ([fence(), fence("n" * 17)], "fences[1].name: 17 bytes, must be 1 to 16"),
        ([fence(token=0)], "fences[0].token: 0, must be 1 or more"),
        ([fence(), fence(token=2)], f"fences[1].name: '{NAME}' is named twice"),
    ],
)
def test_fences_that_make_no_sense(tokens: list[Fence], message: str) -> None:
    with pytest.raises(TenfoldError) as raised:
        fenced(*tokens)
    assert (raised.value.code, raised.value.message) == (Code.INVALID_ARGUMENT, message)


def test_the_node_says_where_a_fenced_lock_lies() -> None:
    request, writes = fenced(fence(), fence(AWAY, holder=True))
    assert [each.holder for each in request.fences] == [True, False]
    assert writes == frozenset()


def test_a_lock_is_released_where_the_command_is() -> None:
    assert fenced(fence(release=True), writes={b"k"})[1] == {b"k", written(NAME)}
    with pytest.raises(TenfoldError) as raised:
        fenced(fence(AWAY, release=True))
    assert raised.value.code == Code.CROSS_SHARD and AWAY in raised.value.message
    for writes in (None, {written(NAME)}):
        with pytest.raises(TenfoldError) as raised:
            fenced(fence(release=True), writes=writes)
        assert raised.value.code == Code.INVALID_ARGUMENT
