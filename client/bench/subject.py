"""The cluster that is measured: real processes on this host with twelve shards and fsync on, and one client of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from client.bench.load import Usage
from client.client import Client
from client.results import Put
from cluster.local.local_cluster import LocalCluster

SHARDS = 12
KEY_BYTES = 16
VALUE_BYTES = 100


class Subject:
    """`async with Subject(nodes=3, replicas=3) as subject`: ready when the block begins, gone when it ends."""

    client: Client

    def __init__(self, nodes: int, replicas: int) -> None:
        self.cluster = LocalCluster(nodes=nodes, replicas=replicas, shards=SHARDS)
        self._stack = AsyncExitStack()
        self._pids: list[int] = []

    @property
    def addresses(self) -> list[str]:
        return list(self.cluster.addresses.values())

    async def __aenter__(self) -> Subject:
        try:
            await self._stack.enter_async_context(self.cluster)
            self._pids = [each.pid for each in await self.cluster.status() if each.pid is not None]
            self.client = await self._stack.enter_async_context(Client(self.addresses))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def usage(self) -> Usage:
        return Usage(self._pids)

    async def put_all(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """One batch; the first entry that failed is raised."""
        for each in await self.client.kv.batch([Put(key, value) for key, value in pairs]):
            if each.error is not None:
                raise each.error
