"""Writes under the token of a lock: requests of their own, refused as a whole, told with what was presented."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client.results import Put
from cluster.errors import Code, TenfoldError
from proto.gen import node_pb2
from tests.client.fake_cluster import FakeCluster, Fault
from tests.client.test_outcomes import in_turn
from tests.client.virtual_time import run


def elsewhere(cluster: FakeCluster, count: int) -> list[bytes]:
    """Keys of a shard in which the lock "jobs" does not lie, so that only the tokens it was shown count there."""
    shard = 3 - cluster.shard_of(b"jobs")
    return [cluster.key_in(shard, number) for number in range(count)]


def fences(sub: node_pb2.SubRequest) -> list[tuple[str, int]]:
    return [(fence.name, fence.token) for fence in sub.fences]


def test_a_write_with_a_fence_is_a_request_of_its_own_and_keeps_its_fence_when_sent_again() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=2)
        other, a, b, c, n, d, e, f = elsewhere(cluster, 8)
        async with cluster.client() as client:
            await client.kv.put(other, b"v")
            cluster.faults = in_turn(Fault.LOSE_REPLY)
            await asyncio.gather(
                client.kv.put(a, b"1"),
                client.kv.put(b, b"2", if_fence=("jobs", 7)),
                client.kv.delete(c, if_fence=("jobs", 7)),
                client.kv.increment(n, if_fence=("jobs", 7)),
                client.kv.compare_and_set(d, b"4", version=0, if_fence=("jobs", 7)),
                client.kv.compare_and_delete(e, version=0, if_fence=("jobs", 7)),
                client.kv.transaction([], [Put(f, b"6")], if_fence=("jobs", 7)),
            )
            first, again = cluster.commands()[1:8], cluster.commands()[8:15]
            assert [fences(sub) for sub in first] == [[], *[[("jobs", 7)]] * 6]
            assert [fences(sub) for sub in again] == [fences(sub) for sub in first]
            assert cluster.value(n) == b"1"

    run(scenario())


def test_a_stale_token_is_told_with_what_was_presented_and_hurts_nobody_else() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=2)
        k, plain = elsewhere(cluster, 2)
        async with cluster.client() as client:
            await client.kv.put(k, b"new", if_fence=("jobs", 9))
            writes: list[Any] = [client.kv.put(k, b"old", if_fence=("jobs", 8)), client.kv.put(plain, b"v")]
            refused, version = await asyncio.gather(*writes, return_exceptions=True)
            assert isinstance(refused, TenfoldError) and refused.code is Code.STALE_TOKEN and refused.definite
            assert refused.details == {"presented": {"jobs": 8}}
            assert version > 0 and cluster.value(k) == b"new"

    run(scenario())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("", 1), "0 bytes"),
        (("a\n", 1), "control"),
        (("a", 0), "token 0"),
        (("a",), "1 values"),
        ("a", "str"),
        ((1, 1), "int"),
    ],
)
def test_a_fence_that_makes_no_sense_is_refused_before_anything_is_sent(given: Any, named: str) -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            with pytest.raises(TenfoldError, match=f"if_fence: .*{named}") as caught:
                await client.kv.put("k", b"v", if_fence=given)
            assert caught.value.code is Code.INVALID_ARGUMENT and not cluster.commands()

    run(scenario())
