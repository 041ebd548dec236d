"""Deadlocks within a shard: who would close a cycle is told it, and nobody is told one that is none."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import Code
from proto.gen.lock_pb2 import (
    EXCLUSIVE,
    SEMAPHORE,
    SHARED,
    LockEdges,
    LockEvent,
    LockMode,
    LockQuery,
)
from tests.machines.test_lock import acquire, asked, owners, release, told, world


def test_who_would_close_a_cycle_is_told_the_cycle_and_changes_nothing() -> None:
    shard = world()
    for lease, name in ((1, "a"), (2, "b"), (3, "c")):
        acquire(shard, lease, name)
    acquire(shard, 1, "b", attempt=2)
    acquire(shard, 2, "c", attempt=2)
    before = shard.views["lock"].pairs
    outcome = shard.lock(acquire=asked(3, "a", attempt=2))
    assert (outcome.code, outcome.message) == (Code.DEADLOCK, "a: w3 -> w1, b: w1 -> w2, c: w2 -> w3")
    assert shard.views["lock"].pairs == before
    assert acquire(shard, 3, "a", attempt=2, wait_ms=0).holder.owner == "w1", "who does not wait closes no cycle"


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_who_asks_for_what_it_holds_itself_waits_whoever_stands_between(mode: LockMode.ValueType) -> None:
    shard = world()
    acquire(shard, 1, mode=mode, owner="task")
    acquire(shard, 2, ttl_ms=9000)
    assert acquire(shard, 3, mode=mode, owner="task", ttl_ms=9000).waiting, "the first hold may be one it has given up"
    shard.time_ms += 1000
    shard.pulse()
    release(shard, 2)
    assert owners(shard) == (["task"], [])


def test_readers_who_both_wait_to_write() -> None:
    shard = world()
    acquire(shard, 1, mode=SHARED)
    acquire(shard, 2, mode=SHARED)
    assert acquire(shard, 1, attempt=2).waiting
    outcome = shard.lock(acquire=asked(2, attempt=2))
    assert (outcome.code, outcome.message) == (Code.DEADLOCK, "a: w2 -> w1, a: w1 -> w2")


def test_holders_of_a_semaphore_who_both_wait_for_more() -> None:
    shard = world()
    permits: dict[str, Any] = {"mode": SEMAPHORE, "capacity": 2}
    acquire(shard, 1, "s", **permits)
    acquire(shard, 2, "s", **permits)
    assert acquire(shard, 1, "s", attempt=2, **permits).waiting, "w2 may give its permit"
    outcome = shard.lock(acquire=asked(2, "s", attempt=2, **permits))
    assert (outcome.code, outcome.message) == (Code.DEADLOCK, "s: w2 -> w1, s: w1 -> w2")
    more: dict[str, Any] = {"mode": SEMAPHORE, "capacity": 3}
    for lease in (1, 2, 3):
        acquire(shard, lease, "t", attempt=3, **more)
    for lease in (1, 2):
        assert acquire(shard, lease, "t", attempt=4, **more).waiting, "w3 may give its permit"


def test_no_cycle_where_somebody_else_may_give_way_or_is_gone() -> None:
    shard = world()
    permits: dict[str, Any] = {"mode": SEMAPHORE, "capacity": 2}
    acquire(shard, 1, "s", **permits)
    acquire(shard, 2, "s", **permits)
    acquire(shard, 3, "b", ttl_ms=9000)
    acquire(shard, 1, "b", attempt=2)
    assert acquire(shard, 3, "s", attempt=2, **permits).waiting, "w2 may give its permit"
    acquire(shard, 4, "x", ttl_ms=9000)
    acquire(shard, 5, "y")
    acquire(shard, 5, "x", attempt=2)
    shard.time_ms += 1000
    assert acquire(shard, 4, "y", attempt=2).waiting, "the lease of w5 has ended"


def test_a_holder_of_a_semaphore_that_asks_for_more_than_there_is_waits_for_itself() -> None:
    shard = world()
    permits: dict[str, Any] = {"mode": SEMAPHORE, "capacity": 3}
    acquire(shard, 1, "s", permits=2, **permits)
    acquire(shard, 2, "s", **permits)
    acquire(shard, 1, "b", attempt=2)
    acquire(shard, 2, "b", attempt=2)
    assert acquire(shard, 1, "s", attempt=3, permits=2, **permits).waiting, "with its own two, w2 need not give way"


def test_a_wait_that_another_shard_found_in_a_deadlock() -> None:
    shard = world()
    acquire(shard, 1)
    acquire(shard, 2)
    assert release(shard, 2, reason="a: w2 -> w1, b: w1 -> w2").released
    assert [event.reason for event in shard.told()] == ["a: w2 -> w1, b: w1 -> w2"]
    assert told(shard) == [(LockEvent.DEADLOCK, 2, 0)]
    acquire(shard, 2, attempt=2)
    release(shard, 1)
    assert release(shard, 2, attempt=2, reason="too late").granted
    assert owners(shard) == (["w2"], [])


def test_edges_name_the_holders_that_must_give_way() -> None:
    shard = world()
    acquire(shard, 1, mode=SHARED)
    acquire(shard, 2)
    acquire(shard, 3, mode=SHARED)
    found = shard.applier.query("lock", LockQuery(edges=LockEdges(owners=["w3", "w2", "w1"])))
    edges = [(edge.waiter, list(edge.holders), list(edge.tokens), edge.index) for edge in found.edges]
    assert edges == [("w2", ["w1"], [1], 2), ("w3", ["w1"], [1], 3)], "w3 needs what w2, before it, needs"
