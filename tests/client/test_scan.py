"""Scans over shards against a sorted list: the same keys in the same order, whatever the bounds, limits and leaders."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.results import KvItem, Put
from client.scan import after_prefix
from cluster.errors import Code, TenfoldError
from proto.gen import kv_pb2, node_pb2
from tests.client.fake_cluster import CLUSTER_ID, FakeCluster, Fault
from tests.client.test_batcher import limits
from tests.client.virtual_time import run

KEYS = st.sets(st.binary(min_size=1, max_size=3).map(lambda k: k.replace(b"{", b"x")), max_size=60)
EDGES = st.binary(max_size=2)


def small_pages(keys: int) -> FakeCluster:
    return FakeCluster(shards=4, nodes=2, limits=limits(scan_keys_max=keys, scan_count_keys_max=keys))


def scans(cluster: FakeCluster) -> list[node_pb2.SubRequest]:
    return [sub for sub in cluster.subs() if sub.mode == node_pb2.QUERY]


@settings(max_examples=60)
@given(
    KEYS, EDGES, EDGES, st.booleans(), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 70)), st.integers(1, 9)
)
def test_a_scan_is_the_sorted_range(
    keys: set[bytes], start: bytes, end: bytes, reverse: bool, page_keys: int, limit: int | None, items: int
) -> None:
    """Iterated at once, and page by page with a fresh scan from each cursor; and the count agrees."""
    if end and end < start:
        start, end = end, start

    async def scenario() -> None:
        cluster = small_pages(page_keys)
        async with cluster.client() as client:
            await client.kv.batch([Put(key, b"v" + key) for key in keys])
            model = sorted((key for key in keys if start <= key and (not end or key < end)), reverse=reverse)
            scan = client.kv.scan(start=start, end=end, reverse=reverse, limit=limit)
            assert [item async for item in scan] == await _items(client.kv, model[:limit])
            if limit is None:
                assert scan.cursor is None
            assert await client.kv.count(start=start, end=end) == len(model)
            paged: list[KvItem] = []
            cursor = None
            while True:
                again = client.kv.scan(start=start, end=end, reverse=reverse, cursor=cursor)
                page = await again.page(items)
                paged += page.items
                cursor = page.cursor
                if cursor is None:
                    break
                assert len(page.items) == items
            assert [item.key for item in paged] == model

    run(scenario())


async def _items(kv: object, keys: list[bytes]) -> list[KvItem]:
    found = await kv.get_many(keys)  # type: ignore[attr-defined]
    return [KvItem(key, value.value, value.version) for key, value in zip(keys, found, strict=True)]


@given(st.sets(st.binary(min_size=1, max_size=3), max_size=40), st.binary(max_size=2))
def test_the_end_of_a_prefix_is_behind_all_its_keys(keys: set[bytes], prefix: bytes) -> None:
    end = after_prefix(prefix)
    for key in keys:
        assert (prefix <= key and (not end or key < end)) == key.startswith(prefix)


def test_a_scan_goes_on_over_leader_changes_and_lost_replies() -> None:
    async def scenario() -> None:
        cluster = small_pages(2)
        keys = sorted(b"k%03d" % i for i in range(60))
        async with cluster.client() as client:
            await client.kv.batch([Put(key, b"v") for key in keys])
            calls = {"n": 0}

            def trouble(node: str, request: node_pb2.CallRequest) -> Fault:
                calls["n"] += 1
                cluster.move(1 + calls["n"] % 4, "n1" if calls["n"] % 3 else "n2")
                return Fault.LOSE_REPLY if calls["n"] % 5 == 0 else Fault.NONE

            cluster.faults = trouble
            assert [item.key async for item in client.kv.scan(prefix="k", keys_only=True)] == keys

    run(scenario())


def test_a_cursor_outlives_its_client_and_keeps_its_place_among_changes() -> None:
    async def scenario() -> None:
        cluster = small_pages(3)
        keys = sorted(b"k%03d" % i for i in range(30))
        async with cluster.client() as client:
            await client.kv.batch([Put(key, b"v") for key in keys])
            page = await client.kv.scan(prefix="k").page(10)
        async with cluster.client() as client:
            await client.kv.put("k0000", b"before the cursor")
            await client.kv.delete(keys[9])
            rest = [item.key async for item in client.kv.scan(prefix="k", cursor=page.cursor)]
            assert rest == keys[10:]

    run(scenario())


def test_a_limit_leaves_a_cursor_to_go_on_with() -> None:
    async def scenario() -> None:
        cluster = small_pages(3)
        async with cluster.client() as client:
            await client.kv.batch([Put(f"k{i}", b"v") for i in range(7)])
            scan = client.kv.scan(prefix="k", limit=5)
            assert len([item async for item in scan]) == 5
            rest = client.kv.scan(prefix="k", cursor=scan.cursor)
            assert [item.key for item in (await rest.page()).items] == [b"k5", b"k6"]

    run(scenario())


def test_a_cursor_of_another_query_or_cluster_is_refused() -> None:
    async def scenario() -> None:
        cluster = small_pages(3)
        async with cluster.client() as client:
            await client.kv.batch([Put(f"k{i}", b"v") for i in range(9)])
            cursor = (await client.kv.scan(prefix="k").page(2)).cursor
            assert cursor is not None and client.cluster_id == CLUSTER_ID
            for other in ({"prefix": "j"}, {"prefix": "k", "reverse": True}, {"start": "k"}):
                with pytest.raises(TenfoldError) as caught:
                    client.kv.scan(cursor=cursor, **other)
                assert caught.value.code is Code.INVALID_CURSOR
            for bad in ({"prefix": "k", "start": "a"}, {"start": "b", "end": "a"}, {"limit": 0}):
                with pytest.raises(TenfoldError) as caught:
                    client.kv.scan(**bad)
                assert caught.value.code is Code.INVALID_ARGUMENT

    run(scenario())


def test_a_whole_hash_tag_in_the_prefix_asks_one_shard() -> None:
    async def scenario() -> None:
        cluster = small_pages(5)
        async with cluster.client() as client:
            await client.kv.batch([Put(f"u/{{ann}}/{i}", b"v") for i in range(12)])
            for prefix, shards in (("u/{ann}/", 1), ("u/{ann}", 1), ("u/{ann", 4), ("u/", 4)):
                before = len(scans(cluster))
                assert await client.kv.count(prefix) == 12
                assert len({sub.shard for sub in scans(cluster)[before:]}) == shards
            await client.kv.put("u/{}x", b"v")  # an empty tag is no tag
            assert await client.kv.count("u/{}") == 1

    run(scenario())


def test_no_more_than_two_pages_of_a_shard_are_held() -> None:
    """One that is given out and one asked for ahead; and a caller that stops is not read ahead for."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=2, nodes=1, limits=limits(scan_keys_max=10))
        async with cluster.client() as client:
            await asyncio.gather(*[client.kv.put(f"k{i:03}", b"v") for i in range(200)])
            scan = client.kv.scan()
            items = aiter(scan)
            for taken in range(1, 201):
                await anext(items)
                told = len(scans(cluster)) * 10
                assert told <= taken + 2 * 2 * 10
            small = len(scans(cluster))
            await client.kv.scan(limit=4).page(4)
            await client.kv.put("behind", b"what was asked ahead would have been sent by now")
            asked = [kv_pb2.KvQuery.FromString(sub.body).scan.limit for sub in scans(cluster)[small:]]
            assert asked == [4, 4], "a small scan asks for small pages, once"

    run(scenario())


def test_a_scan_tells_the_index_of_each_shard_and_how_stale_it_is() -> None:
    async def scenario() -> None:
        cluster = small_pages(5)
        async with cluster.client() as client:
            await client.kv.batch([Put(f"k{i}", b"v") for i in range(20)])
            scan = client.kv.scan(consistency="stale")
            await scan.page()
            assert scan.indexes == {shard: world.index for shard, world in cluster.worlds.items()}
            assert scan.stale_ms == 7

    run(scenario())


def test_a_shard_that_fails_ends_the_scan_with_its_error() -> None:
    async def scenario() -> None:
        cluster = small_pages(5)
        async with cluster.client() as client:
            await client.kv.batch([Put(f"k{i}", b"v") for i in range(20)])
            cluster.refuse = lambda node, sub: node_pb2.SubReply(code=Code.QUARANTINED) if sub.shard == 2 else None
            with pytest.raises(TenfoldError) as caught:
                async with asyncio.timeout(60):
                    await client.kv.scan(deadline_s=1.0).page()
            assert caught.value.code is Code.QUARANTINED

    run(scenario())
