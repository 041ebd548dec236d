"""What waits, joins: how operations become calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.results import Delete, Increment, Put
from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from proto.gen import node_pb2
from tests.client.fake_cluster import RTT_S, FakeCluster, Fault, ops_of
from tests.client.virtual_time import run
from tests.machines.shard_world import tiny


def limits(**exact: int) -> Limits:
    """Wide enough to work with; what a test is about is named."""
    wide = {"client_queue_ops_max": 10_000, "client_calls_max": 4, "client_patience_ms": 50, "client_attempt_ms": 2000}
    bounds = {
        "batch_ops_max": 64,
        "call_requests_max": 64,
        "session_window": 16,
        "sessions_max": 16,
        "message_bytes_max": 2**24,
    }
    wide_bytes = {"request_bytes_max": 2**22, "call_bytes_max": 2**23, "value_bytes_max": 2**16, "key_bytes_max": 64}
    wide_bytes |= {"client_queue_bytes_max": 2**26, "scan_bytes_max": 2**17, "entry_bytes_max": 5 * 2**20}
    feed = {"feed_bytes_max": 2**23, "feed_records_max": 20_000, "session_bytes_max": 2**20, "ttl_ms_max": 10**9}
    other = {"session_expiry_ms": 600_000, "client_backoff_ms_min": 10, "client_backoff_ms_max": 200}
    return tiny(**{**wide, **bounds, **wide_bytes, **feed, **other, "deadline_ms_max": 600_000, **exact})


def test_all_of_one_pass_leave_together_and_no_timer_holds_them_back() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3, nodes=3)
        async with cluster.client() as client:
            loop = asyncio.get_running_loop()
            started = loop.time()
            await asyncio.gather(*[client.kv.put(f"k{i}", b"v") for i in range(300)])
            # one call a node to open sessions, one with all the puts; nothing waited beside the two round trips
            assert loop.time() - started == pytest.approx(2 * RTT_S)
            assert [len(call.requests) for _, call in cluster.calls] == [1] * 6
            assert sum(len(ops_of(sub)) for sub in cluster.commands()) == 300
            started = loop.time()
            await client.kv.put("alone", b"v")
            assert loop.time() - started == pytest.approx(RTT_S)

    run(scenario())


def test_one_call_in_flight_a_node_and_what_waits_joins_the_next() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3, nodes=1)
        async with cluster.client() as client:

            async def caller(name: int) -> None:
                for i in range(10):
                    await client.kv.put(f"{name}-{i}", b"v")

            await asyncio.gather(*[caller(name) for name in range(64)])
            assert cluster.most_in_flight == {"n1": 1}
            assert len(cluster.calls) == 11  # sessions, then ten rounds of 64

    run(scenario())


def test_a_slow_shard_holds_up_one_call_and_not_the_others() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=4, nodes=1)
        keys = {shard: cluster.key_in(shard) for shard in range(1, 5)}
        async with cluster.client() as client:
            await asyncio.gather(*[client.kv.put(key, b"v") for key in keys.values()])
            loop = asyncio.get_running_loop()
            cluster.delay_s = {1: 1.0}
            slow = asyncio.ensure_future(client.kv.put(keys[1], b"slow"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            started = loop.time()
            others = [asyncio.ensure_future(client.kv.put(keys[shard], b"quick")) for shard in (2, 3, 4)]
            behind = asyncio.ensure_future(client.kv.put(keys[1], b"behind"))
            for each in others:
                await each
            assert loop.time() - started == pytest.approx(0.05 + RTT_S, abs=0.001), "patience, then a further call"
            assert not slow.done() and cluster.most_in_flight == {"n1": 2}
            await slow
            await behind
            assert all(len(Counter(sub.shard for sub in call.requests)) <= 3 for _, call in cluster.calls[-3:])

    run(scenario())


def test_calls_to_a_node_are_bounded() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=9, nodes=1)
        keys = [cluster.key_in(shard) for shard in range(1, 10)]
        async with cluster.client() as client:
            await asyncio.gather(*[client.kv.put(key, b"v") for key in keys])
            cluster.delay_s = dict.fromkeys(range(1, 10), 1.0)
            writes = []
            for key in keys:  # one more shard whenever patience with the last call is over
                writes.append(asyncio.ensure_future(client.kv.put(key, b"w")))
                loop = asyncio.get_running_loop()
                over = loop.create_future()
                loop.call_later(0.06, over.set_result, None)
                await over
            for write in writes:
                await write
            assert cluster.most_in_flight == {"n1": cluster.limits.client_calls_max}

    run(scenario())


def test_no_command_writes_a_key_twice_and_writes_of_a_key_share_a_call() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=2, nodes=1)
        async with cluster.client() as client:
            numbers = await asyncio.gather(*[client.kv.increment("hot") for _ in range(50)])
            assert sorted(numbers) == list(range(1, 51))
            assert len(cluster.calls) == 2
            assert all(len(ops_of(sub)) == 1 for sub in cluster.commands())
            assert [sub.sequence for sub in cluster.commands()] == list(range(1, 51))
            versions = await asyncio.gather(*[client.kv.put(f"a{i % 3}", b"v") for i in range(9)])
            assert len(set(versions)) == 9 // 3 * len({cluster.shard_of(b"a%d" % i) for i in range(3)})

    run(scenario())


def test_reads_join_by_consistency() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            before = len(cluster.calls)
            reads: list[Any] = [client.kv.get(f"g{i}") for i in range(20)]
            reads += [client.kv.get("k", consistency="lease"), client.kv.get("k", consistency="stale")]
            found = await asyncio.gather(*reads)
            assert found[:20] == [None] * 20
            assert (found[20].value, found[20].stale_ms) == (b"v", 0)
            assert (found[21].value, found[21].stale_ms) == (b"v", 7)
            asked = [sub.consistency for _, call in cluster.calls[before:] for sub in call.requests]
            assert sorted(asked) == [node_pb2.LINEARIZABLE, node_pb2.LEASE, node_pb2.STALE]

    run(scenario())


def test_an_answer_that_stops_early_is_asked_on() -> None:
    """The server ends a read's answer before it grows too large; every caller still gets all of its keys."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1, limits=limits(scan_bytes_max=1000))
        async with cluster.client() as client:
            await client.kv.batch([Put(f"k{i}", b"x" * 300) for i in range(20)])
            some, many = await asyncio.gather(client.kv.get("k7"), client.kv.get_many([f"k{i}" for i in range(20)]))
            assert some is not None and some.value == b"x" * 300
            assert [each.value for each in many if each is not None] == [b"x" * 300] * 20

    run(scenario())


def test_a_stale_read_asks_any_replica_and_goes_elsewhere_when_one_fails() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=3)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.down = {"n1", "n2"}
            found = await client.kv.get("k", consistency="stale")
            assert found is not None and found.value == b"v"

    run(scenario())


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 60)), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(2, 6),
    st.integers(1000, 4000),
)
def test_every_bound_is_kept(
    puts: list[tuple[int, int]], batch_ops: int, call_requests: int, window: int, call_bytes: int
) -> None:
    """Sub-requests in a call, operations and bytes in each, sequences above the mark; and every put is done."""

    async def scenario() -> None:
        bounds = limits(
            batch_ops_max=batch_ops, call_requests_max=call_requests, session_window=window, call_bytes_max=call_bytes,
            request_bytes_max=500, value_bytes_max=64,
        )  # fmt: skip
        cluster = FakeCluster(shards=2, nodes=1, limits=bounds)
        async with cluster.client() as client:
            await asyncio.gather(*[client.kv.put(f"k{key}", b"v" * size) for key, size in puts])
        for _, call in cluster.calls:
            assert len(call.requests) <= call_requests and call.ByteSize() <= call_bytes + 100
        for sub in cluster.commands():
            assert len(ops_of(sub)) <= batch_ops and len(sub.body) <= 500
            assert sub.low_water < sub.sequence <= sub.low_water + window
        assert sum(len(ops_of(sub)) for sub in cluster.commands()) == len(puts)

    run(scenario())


def test_a_full_queue_refuses_definitely() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1, limits=limits(client_queue_ops_max=8))
        async with cluster.client() as client:
            results = await asyncio.gather(*[client.kv.put(f"k{i}", b"v") for i in range(12)], return_exceptions=True)
            refused = [each for each in results if isinstance(each, TenfoldError)]
            assert len(refused) == 4 and all(each.code is Code.OVERLOADED for each in refused)
            assert await client.kv.count() == 8
            await client.kv.put("again", b"v")  # there is room again

    run(scenario())


def test_what_its_caller_gave_up_before_it_was_sent_is_never_sent() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1)
        async with cluster.client() as client:
            await client.kv.put("first", b"v")
            waiting = asyncio.ensure_future(client.kv.put("second", b"v"))  # in flight
            await asyncio.sleep(0)
            given_up = asyncio.ensure_future(client.kv.put("third", b"v"))
            await asyncio.sleep(0)
            given_up.cancel()
            await waiting
            await client.kv.put("fourth", b"v")
            assert cluster.value(b"third") is None and cluster.value(b"second") == b"v"

    run(scenario())


def test_a_batch_has_a_result_for_each_entry() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3, nodes=3)
        async with cluster.client() as client:
            await client.kv.put("word", b"x")
            results = await client.kv.batch([Put("p", "1"), Increment("word"), Delete("none"), Increment("n", 5)])
            assert [each.error.code if each.error else None for each in results] == [
                None,
                Code.NOT_A_NUMBER,
                None,
                None,
            ]
            assert results[0].version > 0 and not results[2].found and results[3].number == 5
            assert await client.kv.batch([]) == []
            with pytest.raises(TenfoldError, match="written twice"):
                await client.kv.batch([Put("same", "1"), Delete("same")])

    run(scenario())


def test_batches_that_were_joined_get_their_own_results() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            batches = [[Increment(f"{name}-{i}", 100 * name + i) for i in range(3)] for name in range(5)]
            single = asyncio.ensure_future(client.kv.increment("n", 7))
            found = await asyncio.gather(*[client.kv.batch(entries) for entries in batches])
            assert [[each.number for each in results] for results in found] == [
                [100 * name + i for i in range(3)] for name in range(5)
            ]
            assert await single == 7
            assert len(ops_of(cluster.commands()[-1])) == 16

    run(scenario())


def test_closing_ends_what_waits() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1)
        client = cluster.client()
        await client.start()
        await client.kv.put("k", b"v")
        cluster.faults = lambda node, request: Fault.HANG
        sent = asyncio.ensure_future(client.kv.put("sent", b"v"))
        for _ in range(3):
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(client.kv.put("waiting", b"v"))
        await asyncio.sleep(0)
        await client.close()
        ends = await asyncio.gather(sent, waiting, return_exceptions=True)
        assert [each.code for each in ends if isinstance(each, TenfoldError)] == [
            Code.UNKNOWN_OUTCOME,
            Code.SHUTTING_DOWN,
        ]
        with pytest.raises(TenfoldError, match="closed"):
            await client.kv.get("k")

    run(scenario())
