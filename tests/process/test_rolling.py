"""`tenfold restart --rolling` on real nodes: nobody who retries sees a failure, nothing counts twice, and a watch misses nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from client.client import Client
from cluster.local.local_cluster import LocalCluster
from tests.process.kv_cluster import REPOSITORY

LIMIT_S = 90.0
CALLERS = 12


async def tenfold(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tenfold", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    try:
        out, error = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


class Load:
    """Callers that count, each its own key and all one together, and read what they wrote."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.counted = 0
        self._stopped = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends with the first failure of any caller."""
        callers = [asyncio.create_task(self._count(number)) for number in range(CALLERS)]
        try:
            yield
        finally:
            self._stopped = True
            await asyncio.gather(*callers)

    async def _count(self, number: int) -> None:
        kv, own = self._client.kv, 0
        while not self._stopped:
            own += 1
            assert await kv.increment(f"r/{number}") == own
            await kv.increment("r/all")
            self.counted += 1
            found = await kv.get(f"r/{number}")
            assert found is not None and int(found.value) == own
            await kv.get(f"r/{number}", consistency="stale")


async def test_every_node_is_restarted_and_no_operation_fails(tmp_path: Path) -> None:
    home = tmp_path / "c"
    async with asyncio.timeout(LIMIT_S), LocalCluster(3, 3, 3, home) as cluster:
        before = {each.node: each.reply.incarnation for each in await cluster.status() if each.reply is not None}
        async with Client(list(cluster.addresses.values())) as client, client.kv.watch("r/all") as watch:
            load = Load(client)
            async with load.running():
                code, out, error = await tenfold("restart", "--rolling", "--json", "--dir", home)
            assert code == 0, error
            assert json.loads(out) == {"restarted": ["n1", "n2", "n3"], "killed": []}
            assert [line for line in error.splitlines() if "is back" in line][-1].endswith("3 of 3")
            assert load.counted > 100
            told = [int((await anext(watch)).value) for _ in range(load.counted)]
            assert told == list(range(1, load.counted + 1))
        after = {each.node: each.reply.incarnation for each in await cluster.status() if each.reply is not None}
        assert after == {node: number + 1 for node, number in before.items()}
        await cluster.kill("n2")
        code, _, error = await tenfold("restart", "--rolling", "n9", "--dir", home)
        assert code == 64 and "its nodes are n1, n2, n3" in error
