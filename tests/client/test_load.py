"""How a load ends when the cluster goes away, or when it is told to end: all that was sent is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from client.cli.load import BATCH_RECORDS, BATCHES_FAILED_MAX, BATCHES_IN_FLIGHT, Loaded, Loader, Source
from cluster.limits import DEFAULT
from proto.gen import node_pb2
from tests.client.fake_cluster import FakeCluster, Fault
from tests.client.virtual_time import run

RECORDS = 100 * BATCH_RECORDS


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "file"
    path.write_bytes(b"line\n" * RECORDS)
    return Source(path, "p", "lines", None)


def test_a_load_gives_up_when_the_cluster_is_gone(source: Source) -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3)
        async with cluster.client() as client:
            await client.kv.put("other", b"v")
            loaded = Loaded()
            loading = asyncio.ensure_future(Loader(client, source, 60.0, loaded).run())
            while loaded.acknowledged < 10 * BATCH_RECORDS:
                await asyncio.sleep(0.001)
            cluster.down = {"n1", "n2", "n3"}
            started = asyncio.get_running_loop().time()
            await loading
            assert asyncio.get_running_loop().time() - started <= 2 * 60.0 + 1
        assert loaded.stopped is not None and loaded.failed
        assert loaded.acknowledged + loaded.failed + loaded.unknown == loaded.stopped
        assert loaded.stopped <= loaded.acknowledged + (BATCHES_IN_FLIGHT + BATCHES_FAILED_MAX + 1) * BATCH_RECORDS
        assert loaded.bytes < source.path.stat().st_size / 2, "so progress is not at its end"
        assert f"stopped behind line {loaded.stopped}" in loaded.text()
        assert loaded.document(source)["stopped_behind_line"] == loaded.stopped

    run(scenario())


def test_an_interrupted_load_tells_what_it_knows(source: Source) -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3)
        async with cluster.client() as client:
            loaded = Loaded()
            loading = asyncio.ensure_future(Loader(client, source, 60.0, loaded).run())
            while loaded.acknowledged < 20 * BATCH_RECORDS:
                await asyncio.sleep(0.001)
            hanging: set[int] = set()

            def hang(node: str, request: node_pb2.CallRequest) -> Fault:
                hanging.update(sub.shard for sub in request.requests)
                return Fault.HANG

            cluster.faults = hang
            while len(hanging) < 3:
                await asyncio.sleep(0.001)
            known = loaded.acknowledged
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert known <= loaded.acknowledged and loaded.failed == 0
            assert loaded.unknown == BATCHES_IN_FLIGHT * BATCH_RECORDS

    run(scenario())


def test_what_is_answered_soon_after_an_interrupt_is_known(source: Source) -> None:
    async def scenario() -> None:
        async with FakeCluster(shards=3).client() as client:
            loaded = Loaded()
            loading = asyncio.ensure_future(Loader(client, source, 60.0, loaded).run())
            while loaded.acknowledged < 20 * BATCH_RECORDS:
                await asyncio.sleep(0.001)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert (loaded.failed, loaded.unknown) == (0, 0)
            assert await client.kv.count("p/") == loaded.acknowledged < RECORDS

    run(scenario())


def test_a_whole_load_is_counted_to_the_last_byte(source: Source) -> None:
    async def scenario() -> None:
        async with FakeCluster(shards=3).client() as client:
            loaded = Loaded()
            await Loader(client, source, 60.0, loaded).run()
            assert (loaded.acknowledged, loaded.bytes) == (RECORDS, source.path.stat().st_size)
            assert loaded.stopped is None and loaded.first_bad is None and not loaded.interrupted
            with source.path.open("ab") as file:
                file.write(b"x" * (DEFAULT.value_bytes_max + 1))
            bad = Loaded()
            await Loader(client, source, 60.0, bad).run()
            assert (bad.acknowledged, bad.malformed, bad.document(source)["malformed"]) == (RECORDS, 1, 1)
            assert " 1 malformed" in bad.text()

    run(scenario())
