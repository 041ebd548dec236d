"""More laws of locks on histories made by hand: registers at home, delays, confirms, operators, deadlocks."""

from __future__ import annotations

import pytest

from chaos.history import LockFacts
from tests.chaos.lock_script import NAME, TTL_MS, A, B, C, Script


def test_in_its_own_shard_a_write_under_a_token_that_is_over() -> None:
    for version, laws in ((7, set()), (8, set()), (9, {"fence"})):
        script = Script()
        script.take(A, 5)
        script.write(5, version, home=True)
        script.at(100).release(A, 8)
        script.free(8)
        assert script.laws() == laws, version


def test_in_its_own_shard_a_write_after_the_lease_ran_out() -> None:
    for version, laws in ((9, set()), (10, {"fence"})):
        script = Script()
        script.take(A, 5)
        script.at(1100).free(9)
        script.write(5, version, home=True)
        assert script.laws() == laws, version


def test_in_its_own_shard_a_present_holder_is_not_refused() -> None:
    for until_ms, laws in ((899, {"fence"}), (900, set())):
        script = Script()
        script.take(A, 5)
        script.at(500).write(5, 0, error="STALE_TOKEN", home=True, until_ms=until_ms)
        assert script.laws() == laws, until_ms


def test_in_its_own_shard_who_gives_up_may_be_refused() -> None:
    script = Script()
    script.take(A, 5)
    script.done(script.at(100).invoke("release", lease=A, attempt=1), "info")
    script.write(5, 0, error="STALE_TOKEN", home=True)
    assert script.laws() == set()


def test_in_its_own_shard_a_reader_s_write_after_the_writer_s_grant() -> None:
    for version, laws in ((9, set()), (12, {"fence"})):
        script = Script()
        script.take(A, 5, mode="shared")
        call = script.invoke("release", lease=A, attempt=1)
        script.at(50).take(B, 10)
        script.write(5, version, home=True)
        script.write(10, 13, home=True)
        script.done(call, "info")
        assert script.laws() == laws, version


def test_readers_write_beside_each_other() -> None:
    script = Script()
    script.take(A, 5, mode="shared")
    script.take(B, 6, mode="shared")
    script.write(6, 7, home=True)
    script.write(5, 8, home=True)
    assert script.laws() == set()


@pytest.mark.parametrize("mode", ["shared", "semaphore"])
def test_a_lease_that_shares_a_lock_ends_in_its_time_too(mode: str) -> None:
    for at_ms, laws in ((1100, set()), (100, {"early"})):
        script = Script()
        script.take(A, 5, mode=mode, capacity=3 if mode == "semaphore" else 0)
        script.at(at_ms).free(9)
        assert script.laws() == laws, at_ms


def test_a_lease_that_lives_is_known() -> None:
    for at_ms, laws in ((950, set()), (100, {"early"})):
        script = Script()
        script.take(A, 5, mode="shared")
        call = script.at(at_ms).invoke("renew", key=f"lease/{A:x}", lease=A, ttl_ms=TTL_MS)
        script.done(call, "fail", error="UNKNOWN_LEASE")
        assert script.laws() == laws, at_ms


@pytest.mark.parametrize(("at_ms", "laws"), [(1300, set()), (1100, {"delay"})])
def test_after_a_loss_nobody_has_it_until_the_delay_is_over(at_ms: int, laws: set[str]) -> None:
    script = Script()
    script.take(A, 5, delay_ms=300)
    script.at(1050).free(8)
    script.at(at_ms).take(B, 9)
    assert script.laws() == laws


def test_a_delay_is_for_losses_only_and_nobody_waits_in_vain_meanwhile() -> None:
    script = Script()
    script.take(A, 5, delay_ms=300)
    script.at(10).release(A, 8)
    script.free(8)
    script.at(20).take(B, 9, delay_ms=300)
    waits = script.ask(C)
    script.at(1020).free(12)
    script.at(1400).held(C, 14)
    script.granted(waits, 14, until_ms=1500, queued=10)
    assert script.laws() == set()


@pytest.mark.parametrize(("token", "laws"), [(10, set()), (8, {"fence", "log"})])
def test_a_confirm_is_the_end_of_a_hold(token: int, laws: set[str]) -> None:
    script = Script()
    script.take(A, 5)
    call = script.at(10).invoke("put", key="near", value="x", name=NAME, lease=A, attempt=1, token=5, mode="confirm")
    script.done(call, version=9)
    if token > 9:
        script.free(9)
    script.at(20).take(B, token)
    assert script.laws() == laws


def test_a_hold_that_was_released_does_not_last() -> None:
    script = Script()
    script.take(A, 5)
    script.at(100).release(A, 8)
    script.at(1100).free(12)
    assert script.laws() == {"log"}


def test_who_was_forced_out_convicts_nobody() -> None:
    script = Script()
    script.take(A, 5)
    script.done(script.at(100).invoke("force"), found=True, lock=LockFacts(index=8))
    script.free(8)
    script.at(110).write(5, 0, error="STALE_TOKEN", home=True)
    script.take(B, 9)
    script.at(200).release(A, 0, found=False)
    found = script.check()
    assert found.problems == [] and found.expiries == []


def test_who_was_granted_unheard_and_forced_out_waited_no_more() -> None:
    for operated, laws in ((True, set()), (False, {"queue"})):
        script = Script()
        script.take(A, 5)
        renewed = script.at(10).ask(B)
        script.renew(B)
        script.at(20).release(A, 8)
        script.held(B, 8)
        if operated:
            script.done(script.at(30).invoke("force"), found=True, lock=LockFacts(index=9))
        script.free(9)
        script.take(C, 10)
        script.at(500).done(renewed, "info", lock=LockFacts(queued=6))
        assert script.laws() == laws, operated


def test_a_waiter_is_told_that_an_operator_took_it_away() -> None:
    for operated, laws in ((True, set()), (False, {"early"})):
        script = Script()
        script.take(A, 5)
        waits = script.at(10).ask(B)
        script.renew(B)
        if operated:
            script.done(script.at(30).invoke("force"), found=True, lock=LockFacts(index=9))
            script.free(9)
        script.at(40).done(waits, "fail", error="LOST", lock=LockFacts(index=9, queued=6))
        assert script.laws() == laws, operated


def test_an_end_that_an_operator_overtook_says_nothing_of_the_hold() -> None:
    script = Script()
    script.take(A, 5)
    end = script.at(50).invoke("end", key=f"lease/{A:x}", lease=A)
    script.done(script.at(100).invoke("force"), found=True, lock=LockFacts(index=8))
    script.free(8)
    script.at(110).take(B, 9)
    script.at(120).done(end, found=True, lock=LockFacts(index=12))
    assert script.laws() == set()


DEADLOCKS = [
    ("seat: 14 -> a, other: a -> 14", set()),
    ("", {"deadlock"}),
    ("two wait", {"deadlock"}),
    ("seat: 14 -> a", {"deadlock"}),
    ("seat: 14 -> a, other: a -> 1e", {"deadlock"}),
    ("seat: 14 -> 14", {"deadlock"}),
    ("other: a -> 14, free: 14 -> a", {"deadlock"}),
    ("seat: 14 -> 1e, other: 1e -> 14", {"deadlock"}),
    ("seat: 14 -> a, free: a -> 14", {"deadlock"}),
]


@pytest.mark.parametrize(("cycle", "laws"), DEADLOCKS)
def test_a_deadlock_is_a_cycle_of_those_who_wait(cycle: str, laws: set[str]) -> None:
    script = Script()
    script.take(A, 5)
    other = script.invoke("acquire", "other", lease=B, attempt=2, mode="exclusive", ttl_ms=TTL_MS, wait_ms=0)
    script.granted(other, 6, until_ms=900)
    waits = script.invoke("acquire", "other", lease=A, attempt=2, mode="exclusive", ttl_ms=TTL_MS, wait_ms=500)
    asks = script.at(10).ask(B)
    script.at(20).done(asks, "fail", error="DEADLOCK", lock=LockFacts(cycle=cycle))
    script.at(100).done(waits, "info")
    assert {each.law for each in script.check().problems if each.law != "log"} == laws


@pytest.mark.parametrize("over", ["the wait", "the hold"])
def test_who_waits_or_holds_no_more_is_in_no_deadlock(over: str) -> None:
    script = Script()
    script.take(A, 5)
    other = script.invoke("acquire", "other", lease=B, attempt=2, mode="exclusive", ttl_ms=TTL_MS, wait_ms=0)
    script.granted(other, 6, until_ms=900)
    waits = script.invoke("acquire", "other", lease=A, attempt=2, mode="exclusive", ttl_ms=TTL_MS, wait_ms=5)
    if over == "the wait":
        script.at(8).done(waits, "fail", error="TIMED_OUT", lock=LockFacts(index=8, queued=7))
    else:
        script.release(A, 8)
        script.free(8)
    asks = script.at(10).ask(B)
    script.at(20).done(asks, "fail", error="DEADLOCK", lock=LockFacts(cycle="seat: 14 -> a, other: a -> 14"))
    assert {each.law for each in script.check().problems if each.law != "log"} == {"deadlock"}
