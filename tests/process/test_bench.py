"""The benchmarks on real clusters, with the shortest windows that show something."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from client.bench import move, replication
from client.bench.etcd import EtcdClient, EtcdCluster, installed
from client.bench.load import Usage, measure
from client.bench.plain import PlainClient
from client.bench.subject import SHARDS, Subject
from cluster.wire.channel import dial

LIMIT_S = 60.0
TINY = replication.Plan(factors=(1,), callers=(2,), seconds=0.2, warmup_s=0.05)


async def test_every_cell_of_the_grid_does_work() -> None:
    async with asyncio.timeout(LIMIT_S):
        rows = await replication.run(TINY)
    assert [row["work"] for row in rows] == TINY.works()
    for row in rows:
        assert row["operations"] > 0 and not row["failures"]
        assert 0 < row["p50_ms"] <= row["p99_ms"] < 10_000


async def test_the_plain_client_writes_what_it_says() -> None:
    """The comparison is honest only if its puts are real ones, in every shard, under sessions."""
    rng = random.Random(5)
    pairs = {rng.randbytes(16): rng.randbytes(20) for _ in range(20 * SHARDS)}
    async with asyncio.timeout(LIMIT_S):
        async with Subject(nodes=3, replicas=3) as subject, PlainClient(subject.addresses, dial) as plain:
            await asyncio.gather(*(plain.put(key, value) for key, value in pairs.items()))
            found = await subject.client.kv.get_many(list(pairs))
    assert [each.value for each in found if each is not None] == list(pairs.values())


async def test_a_node_joins_under_a_paced_load_and_gets_its_share() -> None:
    async with asyncio.timeout(LIMIT_S):
        found = await move.run(move.Plan(keys=500, callers=2, rate_per_s=100, seconds=0.5))
    assert [phase["phase"] for phase in found.phases] == ["quiet", "joining", "moving", "after"]
    assert all(phase["operations"] > 0 and not phase["failures"] for phase in found.phases)
    assert 0 < found.moved <= found.replicas / 3 and found.findings[1].met
    assert found.findings[0].figure is not None


@pytest.mark.skipif(not installed(), reason="etcd is not installed")
async def test_etcd_takes_our_transactions(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        async with EtcdCluster(tmp_path) as cluster, EtcdClient(cluster.addresses) as client:
            usage = Usage(cluster.pids)

            async def operation() -> int:
                await client.put_all([(b"key", b"value"), (b"other", b"")])
                return 2

            found = await measure(operation, 2, usage, seconds=0.2, warmup_s=0.0)
    assert found.operations > 0 and found.nodes_cpu_us > 0
