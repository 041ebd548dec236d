"""The measuring of load: what is counted, and what ends it."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.bench.load import Measurement, Usage, measure, percentile
from cluster.errors import Code, TenfoldError

LIMIT_S = 20.0


@pytest.fixture
def usage() -> Usage:
    return Usage([os.getpid()])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_percentile_is_the_smallest_value_that_covers_its_share(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(each <= found for each in ordered) >= share * len(ordered) - 1e-9
    below = [each for each in ordered if each < found]
    assert len(below) < share * len(ordered) + 1e-9


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.99) == 0.0


async def test_every_caller_has_one_request_in_flight(usage: Usage) -> None:
    in_flight = most = 0

    async def operation() -> int:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1
        return 7

    async with asyncio.timeout(LIMIT_S):
        found = await measure(operation, 5, usage, seconds=0.05, warmup_s=0.0)
    assert most == 5 and in_flight == 0
    assert found.operations == 7 * found.requests > 0
    assert found.per_second == pytest.approx(found.operations / found.seconds)
    assert not found.failures


async def test_the_warm_up_does_not_count(usage: Usage) -> None:
    gate = asyncio.Event()
    made = 0

    async def operation() -> int:
        nonlocal made
        made += 1
        if made == 4:
            gate.set()
        await asyncio.sleep(0) if made < 4 else await gate.wait()
        await asyncio.sleep(0)
        return 1

    async with asyncio.timeout(LIMIT_S):
        found = await measure(operation, 1, usage, seconds=0.02, warmup_s=0.02)
    assert 0 < found.operations < made


async def test_failures_are_counted_by_code_and_do_not_spin(usage: Usage) -> None:
    tries = 0

    async def operation() -> int:
        nonlocal tries
        tries += 1
        raise TenfoldError(Code.OVERLOADED)

    async with asyncio.timeout(LIMIT_S):
        found = await measure(operation, 2, usage, seconds=0.05, warmup_s=0.0)
    assert found.operations == 0 and found.p99_ms == 0.0
    assert found.failures == {"OVERLOADED": tries} and tries < 100


async def test_an_unexpected_exception_ends_the_measurement(usage: Usage) -> None:
    async def operation() -> int:
        raise ZeroDivisionError

    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ZeroDivisionError):
            await measure(operation, 2, usage, seconds=0.01, warmup_s=0.01)


async def test_cpu_is_charged_to_operations() -> None:
    usage = Usage([os.getpid()])

    async def operation() -> int:
        sum(range(20_000))
        await asyncio.sleep(0)
        return 1

    async with asyncio.timeout(LIMIT_S):
        found: Measurement = await measure(operation, 1, usage, seconds=0.2, warmup_s=0.0)
    assert found.client_cpu_us > 10
    assert found.nodes_cpu_us > 10
    assert usage.resident_bytes()[0] > 1024 * 1024
