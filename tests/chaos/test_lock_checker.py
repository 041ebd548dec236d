"""The laws of locks on histories made by hand: good ones, and each fault by itself."""

from __future__ import annotations

import pytest

from chaos.history import LockFacts
from tests.chaos.lock_script import NAME, A, B, C, Script


def test_one_after_the_other_is_good() -> None:
    script = Script()
    script.take(A, 5)
    script.at(100).renew(A)
    script.write(5, 6)
    script.at(200).release(A, 8)
    script.free(8)
    script.at(300).take(B, 9)
    script.write(9, 10)
    script.write(5, 0, error="STALE_TOKEN")
    found = script.check()
    assert found.problems == [] and found.acquisitions == 2 and found.expiry is None


def test_an_expired_lease_is_measured_from_its_last_renewal() -> None:
    script = Script()
    script.take(A, 5)
    script.at(500).renew(A)
    script.at(1620).free(9)
    script.at(2000).take(B, 10)
    script.at(3050).free(12)
    found = script.check()
    assert found.problems == [] and found.expiries == [50.0, 120.0]
    assert found.expiry is not None and (found.expiry.p50, found.expiry.max) == (50.0, 120.0)


def test_a_grant_while_the_holder_believes_is_an_overlap() -> None:
    script = Script()
    script.take(A, 5)
    script.at(800).take(B, 9)
    found = script.check()
    assert found.overlaps == 1 and {each.law for each in found.problems} == {"overlap", "early"}


def test_an_end_before_the_lease_can_be_over_is_early() -> None:
    script = Script()
    script.take(A, 5)
    script.at(899).free(9)
    assert script.laws() == {"early"}


def test_a_renewal_that_was_answered_counts() -> None:
    script = Script()
    script.take(A, 5)
    script.at(850).renew(A)
    script.at(1100).free(9)
    assert script.laws() == {"early"}


def test_a_lease_that_has_ended_is_not_renewed() -> None:
    script = Script()
    script.take(A, 5)
    script.at(1100).free(9)
    script.at(1200).renew(A)
    assert script.laws() == {"revived"}


@pytest.mark.parametrize("token", [5, 4])
def test_tokens_rise(token: int) -> None:
    script = Script()
    script.take(A, 5)
    script.at(100).release(A, 7)
    script.free(7)
    call = script.at(200).ask(B)
    script.held(B, token, index=9)
    script.granted(call, token, until_ms=1100)
    assert "token" in script.laws()


def test_an_attempt_has_one_token() -> None:
    script = Script()
    script.take(A, 5)
    script.granted(script.at(10).ask(A), 6, until_ms=900)
    assert "token" in script.laws()


def test_the_log_ends_a_hold_before_the_next() -> None:
    script = Script()
    script.take(A, 5)
    script.at(100)
    call = script.invoke("release", lease=A, attempt=1)
    script.held(B, 7)
    script.granted(script.at(150).ask(B), 7, until_ms=1000)
    script.at(200).done(call, found=True, lock=LockFacts(index=9))
    assert script.laws() == {"log"}


def test_a_release_by_somebody_who_never_asked_frees_nothing() -> None:
    script = Script()
    script.take(A, 5)
    script.at(1000).release(B, 9, found=True)
    assert script.laws() == {"log"}


def test_shared_holders_go_together_and_exclude_others() -> None:
    script = Script()
    script.take(A, 5, mode="shared")
    script.at(50).take(B, 6, mode="shared")
    assert script.laws() == set()
    script.at(100).take(C, 9)
    found = script.check()
    assert found.overlaps == 1 and {each.law for each in found.problems} == {"overlap", "early"}


def test_a_semaphore_has_a_capacity() -> None:
    script = Script()
    for at, lease in enumerate((A, B, C)):
        script.at(at * 10).take(lease, 5 + at, mode="semaphore", capacity=3, permits=1)
    assert script.laws() == set()
    script.at(50).take(40, 12, mode="semaphore", capacity=3, permits=1)
    assert script.check().overlaps == 1


def test_a_stale_token_is_refused() -> None:
    script = Script()
    script.write(9, 20)
    script.write(5, 21)
    script.write(9, 22)
    found = script.check()
    assert found.stale_tokens_accepted == 1 and {each.law for each in found.problems} == {"fence"}


def test_the_highest_token_is_not_refused() -> None:
    script = Script()
    script.write(5, 20)
    script.write(9, 0, error="STALE_TOKEN")
    assert script.laws() == {"fence"}


def test_a_write_in_doubt_may_have_shown_a_token() -> None:
    script = Script()
    script.done(script.invoke("put", key="register", value="x", name=NAME, token=9), "info")
    script.write(5, 0, error="STALE_TOKEN")
    assert script.laws() == set()


# -- waiters -----------------------------------------------------------------------------------------------------------


def test_waiters_in_order_are_good() -> None:
    script = Script()
    script.take(A, 5)
    first, second = script.at(10).ask(B), script.ask(C)
    script.at(100).release(A, 8)
    script.held(B, 8)
    script.granted(first, 8, until_ms=900, queued=6)
    script.at(200).release(B, 9)
    script.held(C, 9)
    script.granted(second, 9, until_ms=900, queued=7)
    found = script.check()
    assert found.problems == [] and found.waiters == 2


def test_who_stands_behind_is_not_granted_first() -> None:
    script = Script()
    script.take(A, 5)
    first, second = script.at(10).ask(B), script.ask(C)
    script.at(100).release(A, 8)
    script.held(C, 8)
    script.granted(second, 8, until_ms=900, queued=7)
    script.at(200).release(C, 9)
    script.held(B, 9)
    script.granted(first, 9, until_ms=900, queued=6)
    assert script.laws() == {"queue"}


def test_nobody_is_forgotten_while_another_is_served() -> None:
    script = Script()
    script.take(A, 5)
    first, second = script.at(10).ask(B), script.ask(C)
    script.at(100).release(A, 8)
    script.held(C, 8)
    script.granted(second, 8, until_ms=900, queued=7)
    script.at(5100).done(first, "fail", error="TIMED_OUT", lock=LockFacts(index=12, queued=6))
    assert script.laws() == {"queue"}


@pytest.mark.parametrize(("mode", "laws"), [("shared", set()), ("exclusive", {"queue"})])
def test_who_was_perhaps_granted_beside_another_convicts_nobody(mode: str, laws: set[str]) -> None:
    script = Script()
    script.take(A, 5)
    first, second = script.at(10).ask(B, mode=mode), script.ask(C, mode="shared")
    script.renew(B)
    script.at(100).release(A, 8)
    script.held(C, 9, index=8)
    script.granted(second, 9, until_ms=900, queued=7)
    script.at(5100).done(first, "info", lock=LockFacts(queued=6))
    assert {each.law for each in script.check().problems} == laws


def test_nobody_waits_for_a_free_lock() -> None:
    script = Script()
    script.take(A, 5)
    first = script.at(10).ask(B)
    script.at(100).release(A, 8)
    script.free(8)
    script.at(200).granted(first, 11, until_ms=1000, queued=6)
    assert "queue" in script.laws()


def test_a_waiter_that_was_told_at_the_same_index_is_passed_over_rightly() -> None:
    script = Script()
    script.take(A, 5)
    first = script.at(10).ask(B)
    script.at(2000).free(8)
    script.done(first, "fail", error="LOST", lock=LockFacts(index=8, queued=6))
    assert script.laws() == set()


def test_a_wait_is_not_cut_short() -> None:
    script = Script()
    script.take(A, 5)
    first = script.at(10).ask(B, wait_ms=1000)
    script.at(700).done(first, "fail", error="TIMED_OUT", lock=LockFacts(index=8, queued=6))
    assert script.laws() == {"queue"}


def test_what_is_not_known_convicts_nobody() -> None:
    script = Script()
    script.take(A, 5)
    script.at(10).done(script.ask(B), "info")
    script.at(100).release(A, 8)
    script.free(8)
    script.at(120).take(C, 9)
    assert script.laws() == set()
