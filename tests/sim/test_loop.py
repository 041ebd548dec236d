"""The loop in virtual time: the same seed, the same order; a process's clock, pause and end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chaos.sim.clock import HostClock
from chaos.sim.loop import Process, SimLoop, Stuck, run


class Virtual:
    """Time that costs none: only the loop's clock moves."""

    @staticmethod
    async def time(seconds: float) -> None:
        await asyncio.sleep(seconds)


def order_of(seed: int) -> list[int]:
    loop = SimLoop(seed)
    ran: list[int] = []

    async def work() -> None:
        for number in range(8):
            loop.call_soon(ran.append, number)
        await Virtual.time(1)

    run(loop, work())
    return ran


def test_a_seed_decides_the_order() -> None:
    assert order_of(1) == order_of(1)
    assert sorted(order_of(1)) == list(range(8))
    assert len({tuple(order_of(seed)) for seed in range(5)}) > 1


def test_hours_pass_at_once_and_timers_fire_when_due() -> None:
    loop = SimLoop(1)

    async def work() -> list[float]:
        fired: list[float] = []
        loop.call_later(7200, lambda: fired.append(loop.now))
        loop.call_later(3600, lambda: fired.append(loop.now))
        await Virtual.time(10_000)
        return fired

    assert run(loop, work()) == pytest.approx([3600, 7200], abs=0.01)


def test_a_forgotten_future_is_noticed() -> None:
    loop = SimLoop(1)

    async def work() -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        run(loop, work())


def test_timers_follow_the_clock_of_their_process() -> None:
    loop = SimLoop(1)
    fast = Process("fast", HostClock(lambda: loop.now, offset_s=500.0))
    fast.clock.set_rate(2.0)

    async def nap() -> tuple[float, float]:
        before = loop.time()
        await Virtual.time(10)
        return loop.time() - before, loop.now

    async def work() -> tuple[float, float]:
        return await loop.start(fast, nap(), "nap")

    shown, true = run(loop, work())
    assert shown == pytest.approx(10, abs=0.01) and true == pytest.approx(5, abs=0.01)


def test_a_paused_process_runs_nothing_until_it_is_resumed() -> None:
    loop = SimLoop(1)
    process = Process("p", HostClock(lambda: loop.now))
    seen: list[float] = []

    async def beat() -> None:
        for _ in range(100):
            await Virtual.time(0.1)
            seen.append(loop.now)

    async def work() -> None:
        task = loop.start(process, beat(), "beat")
        loop.at(1.05, loop.pause, process)
        loop.at(3.0, loop.resume, process)
        await task

    run(loop, work())
    assert not [moment for moment in seen if 1.06 < moment < 3.0]
    assert [moment for moment in seen if moment >= 3.0]


def test_a_killed_process_ends_at_any_await() -> None:
    loop = SimLoop(1)
    process = Process("p", HostClock(lambda: loop.now))
    ended: list[str] = []

    async def forever(name: str) -> None:
        try:
            await Virtual.time(1000)
        finally:
            ended.append(name)

    async def work() -> Any:
        tasks = [loop.start(process, forever(name), name) for name in "ab"]
        await Virtual.time(1)
        loop.kill(process)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in run(loop, work())] == [asyncio.CancelledError] * 2
    assert sorted(ended) == ["a", "b"] and loop.now < 2
