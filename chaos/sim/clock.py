"""A host's clocks: a monotonic one that runs at its own rate, and a wall clock that may jump.

The rate is piecewise constant. Timers of a process follow its monotonic clock, as the kernel's do, so a fast node's
timeouts fire early. Rates stay within the declared drift bound; the wall clock decides nothing and may show anything.
"""

from __future__ import annotations

from collections.abc import Callable

WALL_START_MS = 1_700_000_000_000


class HostClock:
    """A `ports.Clock`. `now` gives true time in virtual seconds."""

    def __init__(self, now: Callable[[], float], offset_s: float = 0.0) -> None:
        self._now = now
        self._true_s = now()
        self._shown_s = offset_s
        self.rate = 1.0
        self.wall_offset_ms = 0

    def monotonic(self) -> float:
        return self._shown_s + (self._now() - self._true_s) * self.rate

    def wall_ms(self) -> int:
        return WALL_START_MS + int(self.monotonic() * 1000) + self.wall_offset_ms

    def true_at(self, shown_s: float) -> float:
        """The true time at which this clock will show `shown_s`, at its present rate."""
        return self._true_s + (shown_s - self._shown_s) / self.rate

    def true_in(self, seconds: float) -> float:
        """The true time after `seconds` of this clock, at its present rate."""
        return self._now() + seconds / self.rate

    def set_rate(self, rate: float) -> None:
        assert rate > 0
        self._shown_s = self.monotonic()
        self._true_s = self._now()
        self.rate = rate


class BusyClock:
    """The same clock for a program that takes its time: each look at it costs `cost_s`, so that time passes inside callbacks."""

    def __init__(self, clock: HostClock, spend: Callable[[float], None], cost_s: float) -> None:
        self._clock = clock
        self._spend = spend
        self._cost_s = cost_s

    def monotonic(self) -> float:
        self._spend(self._cost_s)
        return self._clock.monotonic()

    def wall_ms(self) -> int:
        return self._clock.wall_ms()
