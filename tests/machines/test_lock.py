"""The lock machine's laws, one by one: leases, order, tokens, delays, deadlocks, answers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import Code
from cluster.limits import DEFAULT, Limits
from proto.gen.lock_pb2 import (
    SEMAPHORE,
    SHARED,
    LockAcquire,
    LockAnswer,
    LockEndLease,
    LockEvent,
    LockForceRelease,
    LockList,
    LockQuery,
    LockRelease,
    LockRenew,
    LockResult,
    LockState,
)
from tests.machines.shard_world import ShardWorld, tiny

GRANTED, LOST, CHANGED = LockEvent.GRANTED, LockEvent.LOST, LockEvent.CHANGED


def world(limits: Limits = DEFAULT) -> ShardWorld:
    return ShardWorld(limits)


def asked(lease: int, name: str = "a", **fields: Any) -> LockAcquire:
    defaults: dict[str, Any] = {"attempt": 1, "owner": f"w{lease}", "ttl_ms": 1000, "wait_ms": 5000, "new_lease": True}
    return LockAcquire(name=name, lease=lease, **{**defaults, **fields})


def acquire(shard: ShardWorld, lease: int, name: str = "a", **fields: Any) -> LockResult:
    return shard.locked(acquire=asked(lease, name, **fields))


def release(shard: ShardWorld, lease: int, name: str = "a", **fields: Any) -> LockResult:
    return shard.locked(release=LockRelease(name=name, lease=lease, **{"attempt": 1, **fields}))


def state(shard: ShardWorld, name: str = "a") -> LockState:
    found: LockAnswer = shard.applier.query("lock", LockQuery(get=name))
    return found.locks[0]


def owners(shard: ShardWorld, name: str = "a") -> tuple[list[str], list[str]]:
    """Who holds and who waits."""
    found = state(shard, name)
    return [each.owner for each in found.holders], [each.owner for each in found.waiters]


def told(shard: ShardWorld) -> list[tuple[int, int, int]]:
    """(kind, lease, token) of the last entry's private events."""
    return [(event.kind, event.lease, event.token) for event in shard.told() if event.kind != CHANGED]


# ---- leases


def test_a_lease_ends_at_a_pulse_and_never_before_its_time() -> None:
    shard = world()
    acquire(shard, 1)
    shard.time_ms += 999
    assert not shard.applier.pulse_due(shard.time_ms)
    shard.pulse()
    assert owners(shard) == (["w1"], [])
    shard.time_ms += 1
    assert acquire(shard, 2, wait_ms=0).holder.owner == "w1", "time alone ends nothing"
    assert shard.applier.pulse_due(shard.time_ms)
    shard.pulse()
    assert owners(shard) == ([], []) and told(shard) == [(LOST, 1, 1)]
    assert not shard.views["lock"].pairs, "nothing is left of it"


def test_a_renewal_counts_from_its_stamp_and_never_shortens() -> None:
    shard = world()
    acquire(shard, 1)
    shard.time_ms += 600
    shard.locked(renew=LockRenew(lease=1, ttl_ms=1000))
    shard.locked(renew=LockRenew(lease=1, ttl_ms=100))
    shard.restart()
    shard.time_ms += 999
    assert not shard.applier.pulse_due(shard.time_ms)
    assert state(shard).holders[0].remaining_ms == 1000, "as of the last applied entry"
    shard.time_ms += 1
    assert shard.applier.pulse_due(shard.time_ms)


def test_a_lease_that_has_ended_at_the_stamp_is_not_revived() -> None:
    shard = world()
    acquire(shard, 1)
    shard.time_ms += 1000
    assert shard.lock(renew=LockRenew(lease=1, ttl_ms=1000)).code == Code.UNKNOWN_LEASE
    assert shard.lock(acquire=asked(1)).code == Code.UNKNOWN_LEASE
    assert shard.lock(acquire=asked(1, "b")).code == Code.UNKNOWN_LEASE
    shard.pulse()
    assert acquire(shard, 1).granted, "after the pulse it may begin anew"


def test_only_who_says_so_begins_a_lease() -> None:
    shard = world()
    assert shard.lock(acquire=asked(1, new_lease=False)).code == Code.UNKNOWN_LEASE
    acquire(shard, 1)
    assert not acquire(shard, 2, wait_ms=0).granted
    assert shard.lock(renew=LockRenew(lease=2, ttl_ms=1000)).code == Code.UNKNOWN_LEASE, "a vain try begins none"
    assert acquire(shard, 1, "b", attempt=2, new_lease=False).granted


def test_the_end_of_a_lease_is_the_end_of_all_it_has() -> None:
    shard = world()
    acquire(shard, 2, "b")
    acquire(shard, 1)
    acquire(shard, 1, "c", attempt=3)
    acquire(shard, 1, "b", attempt=2)
    acquire(shard, 3)
    assert shard.locked(end_lease=LockEndLease(lease=1)).released
    assert told(shard) == [(LockEvent.CANCELLED, 1, 0), (GRANTED, 3, 6)]
    assert owners(shard, "b") == (["w2"], []) and owners(shard, "c") == ([], [])
    assert not shard.locked(end_lease=LockEndLease(lease=1)).released


def test_a_lease_with_more_than_a_pulse_may_end_goes_piece_by_piece() -> None:
    shard = world(tiny(pulse_keys_max=3, lease_attempts_max=6, locks_max=8, lock_leases_max=8))
    for attempt, name in enumerate("abcde"):
        acquire(shard, 1, name, attempt=attempt)
    acquire(shard, 2, "e", ttl_ms=9000)
    shard.time_ms += 1000
    ends = []
    while shard.applier.pulse_due(shard.time_ms):
        shard.pulse()
        ends.append([event.name for event in shard.told() if event.kind == LOST])
        shard.restart()
        assert shard.lock(renew=LockRenew(lease=1, ttl_ms=1000)).code == Code.UNKNOWN_LEASE
        assert shard.lock(acquire=asked(1, "a", attempt=9)).code == Code.UNKNOWN_LEASE or ends[-1] == ["e"]
    assert ends == [["a", "b"], ["c", "d"], ["e"]]
    assert owners(shard, "e") == (["w2"], [])


def test_who_may_be_woken_counts_in_a_pulse() -> None:
    shard = world(tiny(pulse_keys_max=4, lock_waiters_max=4, lease_attempts_max=6, locks_max=8, lock_leases_max=8))
    for attempt, name in enumerate("abc"):
        acquire(shard, 1, name, attempt=attempt)
        for lease in (2, 3):
            acquire(shard, lease, name, attempt=attempt, mode=SHARED, ttl_ms=9000)
    shard.time_ms += 1000
    woken = []
    while shard.applier.pulse_due(shard.time_ms):
        shard.pulse()
        woken.append([event.name for event in shard.told() if event.kind == GRANTED])
    assert woken == [["a", "a"], ["b", "b"], ["c", "c"]]


def test_a_lease_is_its_principal_s() -> None:
    shard = world()
    commands: list[dict[str, Any]] = [
        {"acquire": asked(1, "b", attempt=2)},
        {"acquire": asked(1)},
        {"renew": LockRenew(lease=1, ttl_ms=9000)},
        {"release": LockRelease(name="a", lease=1, attempt=1)},
        {"end_lease": LockEndLease(lease=1)},
    ]
    shard.principal = "anna"
    acquire(shard, 1)
    shard.restart()
    before = shard.views["lock"].pairs
    shard.principal = "otto"
    for command in commands:
        outcome = shard.lock(**command)
        assert outcome.code == Code.NOT_HOLDER and "principal" in outcome.message
    assert shard.views["lock"].pairs == before
    shard.principal = "anna"
    for command in commands:
        assert shard.lock(**command).code == Code.OK
    shard.principal = "otto"
    assert acquire(shard, 1).granted, "an id that is free again is anybody's"


# ---- order


def test_nobody_overtakes_and_one_is_woken() -> None:
    shard = world()
    acquire(shard, 1)
    for lease in (2, 3, 4):
        assert acquire(shard, lease).waiters == lease - 2
    release(shard, 1)
    assert told(shard) == [(GRANTED, 2, 5)]
    acquire(shard, 5)
    release(shard, 3)
    assert owners(shard) == (["w2"], ["w4", "w5"])


def test_readers_share_and_a_writer_who_waits_stops_them() -> None:
    shard = world()
    acquire(shard, 1, mode=SHARED)
    assert acquire(shard, 2, mode=SHARED).granted
    acquire(shard, 3)
    assert acquire(shard, 4, mode=SHARED).waiting and acquire(shard, 5, mode=SHARED).waiting
    release(shard, 1)
    release(shard, 2)
    assert owners(shard) == (["w3"], ["w4", "w5"])
    release(shard, 3)
    assert [event.token for event in shard.told() if event.kind == GRANTED] == [8, 9], "strictly increasing"
    assert owners(shard) == (["w4", "w5"], [])


def test_a_waiter_who_leaves_lets_those_behind_pass() -> None:
    shard = world()
    acquire(shard, 1, mode=SHARED)
    acquire(shard, 2)
    acquire(shard, 3, mode=SHARED)
    release(shard, 2)
    assert told(shard) == [(LockEvent.CANCELLED, 2, 0), (GRANTED, 3, 4)]


def test_a_semaphore_counts_permits() -> None:
    shard = world()
    fields: dict[str, Any] = {"mode": SEMAPHORE, "capacity": 3}
    acquire(shard, 1, permits=2, **fields)
    assert acquire(shard, 2, permits=2, **fields).waiting
    assert acquire(shard, 3, **fields).waiting, "the permit that is left is not given past who waits"
    assert shard.lock(acquire=asked(4)).code == Code.LOCK_MODE_DIFFERS
    assert shard.lock(acquire=asked(4, mode=SEMAPHORE, capacity=2)).code == Code.LOCK_MODE_DIFFERS
    release(shard, 1)
    assert owners(shard) == (["w2", "w3"], [])


def test_a_waiter_whose_lease_has_ended_is_never_granted() -> None:
    shard = world()
    acquire(shard, 1, ttl_ms=5000)
    acquire(shard, 2, ttl_ms=1000)
    acquire(shard, 3, ttl_ms=5000)
    shard.time_ms += 1000
    release(shard, 1)
    assert told(shard) == [(LOST, 2, 0), (GRANTED, 3, 4)]


def test_all_leases_that_are_due_end_before_anybody_is_granted() -> None:
    shard = world()
    acquire(shard, 1, ttl_ms=1000)
    acquire(shard, 2, ttl_ms=1000)
    acquire(shard, 3, ttl_ms=1001)
    shard.time_ms += 1000
    shard.pulse()
    assert told(shard) == [(LOST, 1, 1), (LOST, 2, 0), (GRANTED, 3, 4)]


def test_a_bounded_pulse_grants_nothing_to_those_it_did_not_reach() -> None:
    shard = world(tiny(pulse_keys_max=1, lock_waiters_max=3, lock_leases_max=4))
    for lease in (1, 2, 3):
        acquire(shard, lease, ttl_ms=1000)
    shard.time_ms += 1000
    shard.pulse()
    assert told(shard) == [(LOST, 1, 1), (LOST, 2, 0), (LOST, 3, 0)] and shard.applier.pulse_due(shard.time_ms)
    shard.pulse()
    shard.pulse()
    assert not shard.applier.pulse_due(shard.time_ms) and not shard.views["lock"].pairs


def test_a_wait_ends_at_a_pulse_or_when_its_turn_comes_too_late() -> None:
    shard = world()
    acquire(shard, 1, ttl_ms=9000)
    acquire(shard, 2, wait_ms=100, ttl_ms=9000)
    acquire(shard, 3, wait_ms=200, ttl_ms=9000)
    acquire(shard, 4, wait_ms=500, ttl_ms=9000)
    shard.time_ms += 100
    shard.pulse()
    assert told(shard) == [(LockEvent.TIMED_OUT, 2, 0)]
    shard.time_ms += 100
    release(shard, 1)
    assert told(shard) == [(LockEvent.TIMED_OUT, 3, 0), (GRANTED, 4, 6)]


def test_waiters_are_there_after_a_restart() -> None:
    shard = world()
    acquire(shard, 1)
    acquire(shard, 2)
    acquire(shard, 3)
    shard.restart()
    assert owners(shard) == (["w1"], ["w2", "w3"])
    release(shard, 1)
    assert told(shard) == [(GRANTED, 2, 4)]


# ---- who may do what


def test_an_attempt_asked_again_is_answered_the_same() -> None:
    shard = world()
    first = acquire(shard, 1)
    acquire(shard, 2)
    assert acquire(shard, 1, wait_ms=0) == first
    assert acquire(shard, 2) == LockResult(waiting=True)
    release(shard, 1)
    assert acquire(shard, 2) == LockResult(granted=True, token=5)
    assert shard.lock(acquire=asked(2, "b")).code == Code.INVALID_ARGUMENT, "an attempt is about one name"
    assert owners(shard) == (["w2"], [])


def test_a_release_of_another_s_lock_changes_nothing_and_says_so() -> None:
    shard = world()
    acquire(shard, 1)
    acquire(shard, 2, "b")
    before = shard.views["lock"].pairs
    outcome = shard.lock(release=LockRelease(name="a", lease=2, attempt=7))
    assert outcome.code == Code.NOT_HOLDER and "'w1'" in outcome.message
    assert shard.lock(release=LockRelease(name="a", lease=2, attempt=1)).code == Code.INVALID_ARGUMENT
    assert not release(shard, 9).released, "nothing is known of that lease"
    assert shard.views["lock"].pairs == before and owners(shard) == (["w1"], [])
    release(shard, 1)
    assert not release(shard, 1).released, "done already"


def test_a_release_ends_its_lease_if_nothing_is_left() -> None:
    shard = world()
    acquire(shard, 1)
    acquire(shard, 1, "b", attempt=2)
    release(shard, 1, end_lease=True)
    shard.locked(renew=LockRenew(lease=1, ttl_ms=1000))
    release(shard, 1, "b", attempt=2, end_lease=True)
    assert shard.lock(renew=LockRenew(lease=1, ttl_ms=1000)).code == Code.UNKNOWN_LEASE
    assert not shard.views["lock"].pairs


def test_one_owner_may_hold_again_under_the_same_token() -> None:
    shard = world()
    token = acquire(shard, 1, owner="o").token
    assert acquire(shard, 1, owner="o", attempt=2).waiting, "only if it is asked for"
    acquire(shard, 2)
    assert acquire(shard, 1, owner="o", attempt=3, reentrant=True).token == token
    release(shard, 1)
    assert owners(shard) == (["o"], ["o", "w2"])
    release(shard, 1, attempt=3)
    assert told(shard) == [(GRANTED, 1, 6)] and token == 1, "another hold, another token"


def test_a_hold_whose_lease_has_ended_is_not_held_again() -> None:
    shard = world()
    acquire(shard, 1, owner="o")
    acquire(shard, 3, ttl_ms=9000)
    shard.time_ms += 1000
    assert acquire(shard, 2, owner="o", reentrant=True, ttl_ms=9000).waiting, "the pulse has yet to come"
    shard.pulse()
    assert owners(shard) == (["w3"], ["o"]) and told(shard) == [(LOST, 1, 1), (GRANTED, 3, 4)]


def test_an_operator_takes_a_lock_away() -> None:
    shard = world()
    token = acquire(shard, 1, delay_ms=100).token
    acquire(shard, 2)
    assert not shard.locked(force_release=LockForceRelease(name="a", token=token + 1)).released
    assert shard.locked(force_release=LockForceRelease(name="a", token=token)).released
    assert told(shard) == [(LOST, 1, token), (GRANTED, 2, 4)]
    assert not shard.locked(force_release=LockForceRelease(name="b")).released


# ---- tokens


def test_tokens_increase_over_expiry_restart_and_a_record_that_is_gone() -> None:
    shard = world()
    seen = [acquire(shard, 1).token]
    shard.time_ms += 1000
    shard.pulse()
    seen.append(acquire(shard, 2).token)
    release(shard, 2, end_lease=True)
    assert not shard.views["lock"].pairs
    shard.restart()
    seen.append(acquire(shard, 3).token)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("restarts", [False, True])
def test_tokens_that_ran_ahead_of_the_log_are_not_given_again(restarts: bool) -> None:
    shard = world()
    acquire(shard, 1)
    for lease in (2, 3, 4, 5):
        acquire(shard, lease, mode=SHARED)
    shard.locked(force_release=LockForceRelease(name="a"))
    assert [event.token for event in shard.told() if event.kind == GRANTED] == [6, 7, 8, 9]
    shard.locked(force_release=LockForceRelease(name="a"))
    assert owners(shard) == ([], []), "it is free, and yet its last token is remembered"
    assert not shard.applier.query("lock", LockQuery(list=LockList())).locks
    if restarts:
        shard.restart()
    assert acquire(shard, 6).token == 10


# ---- delays


def test_after_an_unclean_loss_nobody_holds_it_until_the_delay_is_over() -> None:
    shard = world()
    acquire(shard, 1, delay_ms=300)
    acquire(shard, 2, ttl_ms=9000)
    shard.time_ms += 1000
    shard.pulse()
    assert owners(shard) == ([], ["w2"]) and state(shard).delay_remaining_ms == 300
    assert acquire(shard, 3, wait_ms=0) == LockResult(waiters=1)
    shard.restart()
    shard.time_ms += 299
    assert not shard.applier.pulse_due(shard.time_ms)
    shard.time_ms += 1
    shard.pulse()
    assert told(shard) == [(GRANTED, 2, 5)]
    release(shard, 2)
    assert acquire(shard, 4).granted, "a clean release has no delay"


def test_a_lease_ended_for_a_holder_that_may_still_act_keeps_its_delays() -> None:
    shard = world()
    acquire(shard, 1, delay_ms=300)
    acquire(shard, 1, "b", attempt=2)
    acquire(shard, 2, "c", delay_ms=300)
    assert shard.locked(end_lease=LockEndLease(lease=1, unclean=True)).released
    assert shard.locked(end_lease=LockEndLease(lease=2)).released
    assert state(shard).delay_remaining_ms == 300 and not acquire(shard, 3, wait_ms=0).granted
    assert acquire(shard, 3, "b").granted and acquire(shard, 3, "c", attempt=2).granted
    shard.time_ms += 300
    shard.pulse()
    assert acquire(shard, 3, attempt=3).granted
