"""Processes whose clocks lie, by libfaketime where there is one."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from chaos.nemesis.clocks import MISSING, Clocks, library
from client.client import Client
from cluster.local.local_cluster import LocalCluster

needs_library = pytest.mark.skipif(library() is None, reason=MISSING)

MEASURE = """
import select, time
uptime = lambda: float(open("/proc/uptime").read().split()[0])
began, monotonic, wall = uptime(), time.monotonic(), time.time()
while uptime() < began + 1.0:
    select.select([], [], [], 0.01)
real = uptime() - began
print((time.monotonic() - monotonic) / real, time.time() - wall - real)
"""


def measured(clocks: Clocks, node: str) -> tuple[float, float]:
    """How fast the monotonic clock of such a process runs, and by how much its wall clock was moved in that second."""
    told = subprocess.run(
        [sys.executable, "-c", MEASURE], env=clocks.variables(node), capture_output=True, text=True, check=True
    ).stdout.split()
    return float(told[0]), float(told[1])


@needs_library
def test_a_rate_is_that_of_the_monotonic_clock(tmp_path: Path) -> None:
    found = library()
    assert found is not None
    clocks = Clocks(found, tmp_path, ["n1", "n2", "n3"], seed=3)
    clocks.rates["n1"] = 1.5  # more than is ever drawn, to be seen on a noisy machine
    rate, _ = measured(clocks, "n1")
    assert 1.3 < rate < 1.7
    rate, moved = measured(clocks, "n2")
    assert 0.8 < rate < 1.2 and abs(moved) < 0.5


@needs_library
async def test_a_cluster_with_lying_clocks_serves(tmp_path: Path) -> None:
    found = library()
    assert found is not None
    async with asyncio.timeout(60):
        cluster = LocalCluster(nodes=3, shards=1, dir=tmp_path / "c")
        await cluster.create()
        clocks = Clocks(found, tmp_path / "clocks", cluster.nodes, seed=5)
        cluster.launcher.variables = {node: clocks.variables(node) for node in cluster.nodes}
        async with cluster, Client(list(cluster.addresses.values())) as client:
            await client.kv.put("k", "1")
            for node in clocks.jumping:
                clocks.jump(node, -300.0)
                await cluster.restart(node)  # it logs when it reaches its peers
            while not all(_moved_back(cluster, node) for node in clocks.jumping):
                await client.kv.put("k", "2")
            got = await client.kv.get("k")
            assert got is not None and got.value == b"2"


def _moved_back(cluster: LocalCluster, node: str) -> bool:
    """Its log tells times, and one is minutes before the one above it."""
    lines = cluster.layout.last_lines(node, 1000)
    minutes = [60 * int(hour) + int(minute) for line in lines for hour, minute in re.findall(r"T(\d\d):(\d\d):", line)]
    return any((before - after) % 1440 in range(4, 7) for before, after in pairwise(minutes))
