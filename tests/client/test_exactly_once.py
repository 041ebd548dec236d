"""Under a network that does anything, every operation is applied as it ended: ok once, failed never, unknown at most once."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Code, TenfoldError
from proto.gen import node_pb2
from tests.client.fake_cluster import FakeCluster, Fault
from tests.client.virtual_time import run

CALLERS, OPERATIONS = 8, 12
REFUSALS = [Code.NOT_LEADER, Code.OVERLOADED, Code.SHUTTING_DOWN, Code.MAP_BEHIND, Code.DEADLINE_PASSED]


class Trouble:
    """Decides by its own chance what happens to each call and sub-request, and moves leaders about."""

    def __init__(self, cluster: FakeCluster, seed: int, rate: float) -> None:
        self.cluster, self.chance, self.rate = cluster, random.Random(seed), rate
        cluster.faults = self.fault
        cluster.refuse = self.refuse

    def fault(self, node: str, request: node_pb2.CallRequest) -> Fault:
        if self.chance.random() < self.rate / 3:
            shard = self.chance.randrange(1, self.cluster.shards + 1)
            self.cluster.move(shard, self.chance.choice(["n1", "n2", "n3"]))
        if self.chance.random() < self.rate / 20:
            self.cluster.forget_sessions(self.chance.randrange(1, self.cluster.shards + 1))
        return self.chance.choice(list(Fault)) if self.chance.random() < self.rate else Fault.NONE

    def refuse(self, node: str, sub: node_pb2.SubRequest) -> node_pb2.SubReply | None:
        if self.chance.random() < self.rate / 5:
            return node_pb2.SubReply(code=self.chance.choice(REFUSALS), leader=self.chance.choice(["", "n1", "n2"]))
        return None


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.6]), st.sampled_from([0.2, 3.0, 10.0]))
def test_every_operation_ends_as_it_was_applied(seed: int, rate: float, deadline_s: float) -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=2, nodes=3)
        ends: dict[str, TenfoldError | None] = {}
        hot: list[TenfoldError | None] = []
        async with cluster.client(deadline_s=deadline_s) as client:
            Trouble(cluster, seed, rate)

            async def attempt(key: str) -> TenfoldError | None:
                try:
                    await client.kv.increment(key)
                except TenfoldError as error:
                    return error
                return None

            async def caller(name: int) -> None:
                for i in range(OPERATIONS):
                    key = f"{name}-{i}"
                    ends[key] = await attempt(key)
                    hot.append(await attempt("hot"))

            await asyncio.gather(*[caller(name) for name in range(CALLERS)])
            cluster.faults = lambda node, request: Fault.NONE
            await cluster.close()
        for key, error in ends.items():
            applied = int(cluster.value(key.encode()) or b"0")
            if error is None:
                assert applied == 1, f"{key} ended ok and was applied {applied} times"
            elif error.definite:
                assert applied == 0, f"{key} failed ({error.code.name}) and was applied {applied} times"
            else:
                assert applied <= 1, f"{key} is unknown and was applied {applied} times"
        done = sum(error is None for error in hot)
        unknown = sum(error is not None and not error.definite for error in hot)
        assert done <= int(cluster.value(b"hot") or b"0") <= done + unknown
        assert len(ends) == CALLERS * OPERATIONS

    run(scenario())


def test_mild_trouble_is_hidden_within_the_deadline() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3, nodes=3)
        async with cluster.client() as client:
            trouble = Trouble(cluster, 5, 0.2)
            cluster.faults = lambda node, request: Fault.LOSE_REPLY if trouble.chance.random() < 0.2 else Fault.NONE
            numbers = await asyncio.gather(*[client.kv.increment("n") for _ in range(200)])
            assert sorted(numbers) == list(range(1, 201))
            for _ in range(100):
                numbers.append(await client.kv.increment("n"))
            assert sorted(numbers) == list(range(1, 301))

    run(scenario())


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_window_bounds_what_is_outstanding(window: int) -> None:
    """A command that hangs keeps the low-water mark down; no sequence is sent beyond the window above it."""
    from tests.client.test_batcher import limits

    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1, limits=limits(session_window=window))
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.faults = lambda node, request: Fault.HANG if len(cluster.calls) < 8 else Fault.NONE
            await asyncio.gather(*[client.kv.increment("hot", deadline_s=100) for _ in range(20)])
            for sub in cluster.commands():
                assert sub.sequence <= sub.low_water + window
            assert cluster.value(b"hot") == b"20"

    run(scenario())
