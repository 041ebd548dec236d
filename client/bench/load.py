"""Closed-loop load: so many callers, each with one request in flight, for so long; and what it cost.

A closed loop cannot overrun the cluster and hides no waiting: latency is counted from the moment a caller asks. Only
requests that end inside the window count; the warm-up before it and the drain after it do not.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import psutil

from cluster.errors import TenfoldError

DRAIN_SECONDS_MAX = 30.0
FAILURE_PAUSE_S = 0.01

Operation = Callable[[], Awaitable[int]]
"""One request; returns how many operations it acknowledged."""


class Usage:
    """What the processes with these ids use, read from the system: asking the nodes themselves would cost them."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]

    def cpu_seconds(self) -> float:
        """User and system time of all of them together since they started."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self._processes))

    def resident_bytes(self) -> list[int]:
        return [each.memory_info().rss for each in self._processes]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One window of load. Times are of requests, costs are per operation (a batch of 100 is 100 operations)."""

    operations: int
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    nodes_cpu_us: float
    client_cpu_us: float
    failures: dict[str, int]

    @property
    def per_second(self) -> float:
        return self.operations / self.seconds

    def document(self) -> dict[str, object]:
        return {
            "operations": self.operations,
            "seconds": round(self.seconds, 3),
            "operations_per_s": round(self.per_second, 1),
            "p50_ms": round(self.p50_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "nodes_cpu_us_per_operation": round(self.nodes_cpu_us, 2),
            "client_cpu_us_per_operation": round(self.client_cpu_us, 2),
            "failures": self.failures,
        }


@dataclass(slots=True)
class _Window:
    counting: bool = False
    stopped: bool = False
    operations: int = 0
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


async def measure(operation: Operation, callers: int, usage: Usage, *, seconds: float, warmup_s: float) -> Measurement:
    """Runs `operation` from `callers` callers and measures `seconds` of it after `warmup_s`.

    A request that raises TenfoldError counts as a failure by its code; any other exception ends the measurement.
    """
    window = _Window()
    tasks = [asyncio.create_task(_caller(operation, window)) for _ in range(callers)]
    try:
        await _while_running(tasks, warmup_s)
        nodes, client, start = usage.cpu_seconds(), time.process_time(), time.perf_counter()
        window.counting = True
        await _while_running(tasks, seconds)
        window.counting = False
        elapsed = time.perf_counter() - start
        nodes, client = usage.cpu_seconds() - nodes, time.process_time() - client
        window.stopped = True
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _summary(window, elapsed, nodes, client)


async def _caller(operation: Operation, window: _Window) -> None:
    clock = time.perf_counter
    while not window.stopped:
        start = clock()
        try:
            done = await operation()
        except TenfoldError as error:
            window.failures[error.code.name] += 1
            await asyncio.sleep(FAILURE_PAUSE_S)  # a refusal may come without any wait, and the loop must live
            continue
        if window.counting:
            window.operations += done
            window.latencies.append(clock() - start)


async def _while_running(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    """Waits `seconds`; the exception of a caller that died ends the wait at once."""
    await asyncio.sleep(seconds)
    for task in tasks:
        if task.done():
            task.result()


def _summary(window: _Window, seconds: float, nodes_cpu_s: float, client_cpu_s: float) -> Measurement:
    ordered = sorted(window.latencies)
    per = max(window.operations, 1)
    return Measurement(
        operations=window.operations,
        requests=len(ordered),
        seconds=seconds,
        p50_ms=percentile(ordered, 0.50) * 1000,
        p99_ms=percentile(ordered, 0.99) * 1000,
        nodes_cpu_us=nodes_cpu_s * 1e6 / per,
        client_cpu_us=client_cpu_s * 1e6 / per,
        failures=dict(window.failures),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the sorted values do not exceed; 0.0 where there is none."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank), 1) - 1]
