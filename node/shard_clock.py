"""Shard time: the last committed stamp plus the monotonic time since this leader's first commit.

It stands still while there is no leader, so a lease resumes where it was, and it advances at most one election timeout a
step, so a leader that was paused does not expire everything at once. What a leader counted and never committed ends with its
term: others have stamped less since, and a lease of theirs would end early. Milliseconds; monotonic seconds are arguments.
"""

from __future__ import annotations


class ShardClock:
    def __init__(self, step_ms_max: int) -> None:
        self.time_ms = 0
        self.wall_ms = 0  # for users' dates only
        self.running = False
        self._step_ms_max = step_ms_max
        self._at = 0.0
        self._fraction_ms = 0.0

    def start(self, time_ms: int, now: float) -> None:
        """The leader's first entry of its term is committed and applied; `time_ms` is the last committed stamp."""
        self.time_ms = time_ms
        self.running = True
        self._at = now
        self._fraction_ms = 0.0

    def stop(self) -> None:
        """Until the next start a stamp says nothing: the last committed one counts."""
        self.running = False
        self.time_ms = 0

    def advance(self, now: float) -> None:
        if not self.running:
            return
        assert now >= self._at, "the monotonic clock went back"
        step = min((now - self._at) * 1000 + self._fraction_ms, float(self._step_ms_max))
        self.time_ms += int(step)
        self._fraction_ms = step - int(step)
        self._at = now
