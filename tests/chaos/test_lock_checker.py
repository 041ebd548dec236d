"""The laws of locks on histories made by hand: good ones, and each fault by itself."""

from __future__ import annotations

import io
from typing import Any

import pytest

from chaos.checkers import lock
from chaos.checkers.lock import LockFinding
from chaos.history import FEED, EventType, LockFacts, Recorder, header, parse

NAME = "seat"
A, B, C = 10, 20, 30
TTL_MS = 1000


class Script:
    """Writes a history whose clock it sets, in milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._file = io.BytesIO()
        self._recorder = Recorder(self._file, header(1, {}, {}), lambda: self.now_ms * 1_000_000)
        self._process = 0

    def at(self, now_ms: int) -> Script:
        assert now_ms >= self.now_ms
        self.now_ms = now_ms
        return self

    def invoke(self, f: str, key: str = NAME, value: str | None = None, **facts: Any) -> tuple[int, str, str]:
        self._process += 1
        asked = LockFacts(**facts)
        self._recorder.record(self._process, "invoke", f, key=key, value=value, shard=1, lock=asked)
        return self._process, f, key

    def done(self, call: tuple[int, str, str], type: EventType = "ok", **fields: Any) -> None:
        process, f, key = call
        self._recorder.record(process, type, f, key=key, shard=1, **fields)

    def ask(
        self, lease: int, *, mode: str = "exclusive", attempt: int = 1, wait_ms: int = 5000, **facts: Any
    ) -> tuple[int, str, str]:
        return self.invoke("acquire", lease=lease, attempt=attempt, mode=mode, ttl_ms=TTL_MS, wait_ms=wait_ms, **facts)

    def granted(self, call: tuple[int, str, str], token: int, *, until_ms: int, queued: int = 0) -> None:
        self.done(call, lock=LockFacts(token=token, index=token, queued=queued, until_ns=until_ms * 1_000_000))

    def take(self, lease: int, token: int, **facts: Any) -> None:
        """Asked and answered at once; believed for 900 ms."""
        call = self.ask(lease, **facts)
        self.held(lease, token)
        self.granted(call, token, until_ms=self.now_ms + 900)

    def held(self, lease: int, token: int, index: int = 0) -> None:
        facts = LockFacts(lease=lease, attempt=1, token=token, index=index or token)
        self._recorder.record(FEED, "ok", "holder", key=NAME, shard=1, lock=facts)

    def free(self, index: int) -> None:
        self._recorder.record(FEED, "ok", "free", key=NAME, shard=1, lock=LockFacts(index=index))

    def release(self, lease: int, index: int, found: bool = True) -> None:
        call = self.invoke("release", lease=lease, attempt=1)
        self.done(call, found=found, lock=LockFacts(index=index))

    def renew(self, lease: int) -> None:
        call = self.invoke("renew", key=f"lease/{lease:x}", lease=lease, ttl_ms=TTL_MS)
        self.done(call, lock=LockFacts(until_ns=(self.now_ms + 900) * 1_000_000))

    def write(
        self, token: int, version: int, error: str = "", key: str = "register", *, home: bool = False, until_ms: int = 0
    ) -> None:
        """`home`: to a register in the lock's own shard. Answered at once, or at `until_ms`."""
        mode = "holder" if home else ""
        call = self.invoke("put", key=key, value=f"{token}.{version}", name=NAME, token=token, mode=mode)
        self.at(max(self.now_ms, until_ms))
        if error:
            self.done(call, "fail", error=error)
        else:
            self.done(call, version=version)

    def check(self) -> LockFinding:
        self._recorder.flush()
        return lock.check(parse(self._file.getvalue().split(b"\n")))

    def laws(self) -> set[str]:
        return {each.law for each in self.check().problems}


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


def test_what_is_not_known_convicts_nobody() -> None:
    script = Script()
    script.take(A, 5)
    script.at(10).done(script.ask(B), "info")
    script.at(100).release(A, 8)
    script.free(8)
    script.at(120).take(C, 9)
    assert script.laws() == set()
