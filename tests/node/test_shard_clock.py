"""Shard time: it goes on from the last committed stamp, at most a step at a time, and only while its leader leads."""

from __future__ import annotations

import pytest

from node.shard_clock import ShardClock

STEP_MS = 1000


def started(time_ms: int = 5_000, now: float = 10.0) -> ShardClock:
    clock = ShardClock(STEP_MS)
    clock.start(time_ms, now)
    return clock


def test_it_goes_on_from_the_last_committed_stamp() -> None:
    clock = started()
    clock.advance(10.25)
    assert clock.time_ms == 5_250


def test_fractions_are_kept() -> None:
    clock = started()
    for number in range(1, 11):
        clock.advance(10.0 + number * 0.0006)
    assert clock.time_ms in (5_005, 5_006)


@pytest.mark.parametrize("paused_s", [1.5, 60.0])
def test_a_pause_counts_as_one_step(paused_s: float) -> None:
    clock = started()
    clock.advance(10.0 + paused_s)
    assert clock.time_ms == 5_000 + STEP_MS


def test_it_stands_still_while_nobody_leads() -> None:
    clock = started()
    clock.advance(10.125)
    clock.stop()
    clock.advance(11.0)
    clock.start(5_125, 12.0)
    clock.advance(12.125)
    assert clock.time_ms == 5_250


def test_what_was_counted_and_never_committed_ends_with_the_term() -> None:
    """A leader that was cut off counts on; meanwhile another one leads from the last committed stamp, and leases are renewed by its time.
    Should the first one lead again from its own count, they would end early by the time it was cut off."""
    clock = started(time_ms=5_000)
    clock.advance(10.875)
    clock.stop()
    assert clock.time_ms == 0, "nothing that is stamped before the next start says anything"
    clock.start(5_200, 11.5)
    assert clock.time_ms == 5_200
