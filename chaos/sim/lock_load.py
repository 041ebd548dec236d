"""The load of locks in the simulator: the workload over real clients, its feeds, and what the checker says.

Each client's process follows the feeds that end its waits; the first one also puts on record what was committed. Some callers
lose patience: then nobody knows what became of the call.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from chaos.checkers import lock
from chaos.checkers.linearizability import Verdict
from chaos.checkers.lock_holds import Problem
from chaos.history import History, Recorder, header, parse
from chaos.judge import judge
from chaos.sim.cluster import SimCluster
from chaos.sim.loop import Process, SimLoop
from chaos.sim.staleness import StaleReader
from chaos.sim.tastes import Taste
from chaos.workloads.kv import Value
from chaos.workloads.lock import LockOptions, LockWorkload
from chaos.workloads.lock_calls import Ask, Granted, Locks, Released
from chaos.workloads.lock_store import ClientLocks
from client.client import Client
from cluster.errors import Code, TenfoldError

STEPS_MAX = 300_000
DEADLINE_S = 8.0
CLIENTS_MAX = 3
IMPATIENT_SHARE = 0.005
IMPATIENT_S = 0.02
RANGES: MappingProxyType[str, tuple[int, int]] = MappingProxyType(
    {
        "locks_max": (6, 32),
        "lock_leases_max": (16, 96),
        "lease_attempts_max": (3, 8),
        "lock_waiters_max": (3, 12),
        "fence_names_max": (12, 96),
        "feed_records_max": (8, 256),
        "feed_bytes_max": (1024, 65_536),
    }
)
"""With less than that, most of the load would be refused for want of room; a part of it shall be."""
GROWTH = 1.5
"""The history is looked at again when it has grown so much."""

T = TypeVar("T")


class SimLocks:
    """A client's locks, called from outside of its process."""

    def __init__(self, loop: SimLoop, process: Process, inner: Locks, chance: random.Random) -> None:
        self._loop, self._process, self._inner, self._chance = loop, process, inner, chance

    async def acquire(self, ask: Ask, queued: Callable[[int], None], *, deadline_s: float) -> Granted:
        return await self._call(self._inner.acquire(ask, queued, deadline_s=deadline_s), "acquire")

    async def renew(self, shard: int, lease: int, ttl_ms: int, *, deadline_s: float) -> None:
        await self._call(self._inner.renew(shard, lease, ttl_ms, deadline_s=deadline_s), "renew")

    async def release(self, ask: Ask, *, deadline_s: float) -> Released:
        return await self._call(self._inner.release(ask, deadline_s=deadline_s), "release")

    async def end(self, shard: int, lease: int, *, deadline_s: float) -> Released:
        return await self._call(self._inner.end(shard, lease, deadline_s=deadline_s), "end")

    async def put(self, key: str, value: str, fence: tuple[str, int] | None, *, deadline_s: float) -> int:
        return await self._call(self._inner.put(key, value, fence, deadline_s=deadline_s), "put")

    async def confirm(self, key: str, value: str, fence: tuple[str, int], *, deadline_s: float) -> int:
        return await self._call(self._inner.confirm(key, value, fence, deadline_s=deadline_s), "confirm")

    async def force(self, name: str, shard: int, *, deadline_s: float) -> Released:
        return await self._call(self._inner.force(name, shard, deadline_s=deadline_s), "force")

    async def get(self, key: str, *, deadline_s: float) -> Value | None:
        return await self._call(self._inner.get(key, deadline_s=deadline_s), "get")

    async def _call(self, work: Coroutine[Any, Any, T], name: str) -> T:
        task = self._loop.start(self._process, work, name)
        left = False

        def leave() -> None:
            nonlocal left
            left = task.cancel()

        if self._chance.random() < IMPATIENT_SHARE:
            self._loop.at(self._loop.now + self._chance.expovariate(1 / IMPATIENT_S), leave)
        try:
            return await task
        except asyncio.CancelledError:
            if not left or not task.cancelled():
                task.cancel()  # who asked has gone: so has the question
                raise
            raise TenfoldError(Code.UNKNOWN_OUTCOME, "the caller lost patience") from None


class LockLoad:
    """A `Load` of the run."""

    def __init__(
        self, cluster: SimCluster, seed: int, taste: Taste, *, clients: int, rate_per_s: int, duration_s: float
    ) -> None:
        self.cluster = cluster
        self.file = io.BytesIO()
        options = {"duration_s": duration_s, "taste": taste.name, "workload": "lock"}
        head = header(seed, options, {"nodes": len(cluster.hosts), "shards": cluster.shards})
        self.recorder = Recorder(self.file, head, lambda: int(cluster.loop.now * 1e9))
        self.stale = StaleReader(lambda: cluster.loop.now, random.Random(f"{seed}/stale"))
        self.workload: LockWorkload | None = None
        self._seed, self._taste = seed, taste
        self._clients = min(clients, CLIENTS_MAX)
        self._rate_per_s = rate_per_s
        self._chance = random.Random(f"{seed}/lock load")
        self._feeds: list[asyncio.Task[None]] = []
        self._load: asyncio.Task[None] | None = None
        self._judged = 0

    @property
    def operations(self) -> int:
        return self.workload.operations if self.workload is not None else 0

    async def start(self) -> asyncio.Task[None]:
        """Returns with the task of the workload."""
        cluster = self.cluster
        cluster.open_clients(self._clients)
        await cluster.start_clients(DEADLINE_S)
        pairs = list(zip(cluster.client_processes, cluster.clients, strict=True))
        stores = [self._store(process, client) for process, client in pairs]
        low = self._chance.choice((150, 300, 600))
        options = LockOptions(
            lanes=4,
            clients_per_lane=self._chance.choice((3, 4, 6)),
            turns_per_name=self._chance.choice((30, 60, 120)),
            turns_per_s=max(1.0, self._rate_per_s * self._taste.rate / 2),
            ttl_ms=(low, low * 6),
            hold_s=self._chance.choice((0.05, 0.15, 0.3)),
            deadline_s=self._chance.choice((1.5, 3.0, DEADLINE_S)),
        )
        self.workload = LockWorkload(self.recorder, stores, cluster.shards, self._seed, options)
        self._load = cluster.loop.create_task(self.workload.run(), name="load")
        return self._load

    def _store(self, process: Process, client: Client) -> Locks:
        """Its feeds are followed from now on."""
        locks = ClientLocks(client, None if self._feeds else self.recorder)
        self._feeds.append(self.cluster.loop.start(process, locks.feed.run(), "feeds"))
        return SimLocks(self.cluster.loop, process, locks, random.Random(f"{self._seed}/patience/{process.host}"))

    def stop(self) -> None:
        """No turn is begun after this."""
        if self.workload is not None:
            self.workload.stop()

    async def read_back(self) -> None:
        """Stopped and healed: the last word on every register."""
        assert self.workload is not None
        await self.workload.read_back()

    async def close(self) -> None:
        self.stop()
        for task in self._feeds:
            task.cancel()
        await asyncio.gather(*self._feeds, return_exceptions=True)

    # -- its judges ----------------------------------------------------------------------------------------------------

    def history(self) -> History:
        """So far; what is under way counts as unknown."""
        self.recorder.flush()
        return parse(self.file.getvalue().split(b"\n"))

    def breaches(self) -> list[str]:
        return []

    def convict(self) -> list[str]:
        """What is wrong already; looked for whenever there is much that is new."""
        if self.operations < self._judged * GROWTH:
            return []
        self._judged = self.operations
        return [_told(each) for each in lock.check(self.history()).problems]

    def judge(self, *, complete: bool) -> tuple[Verdict, int, list[str]]:
        """The verdict, how many operations are in doubt, and why."""
        history = self.history()
        wrong = [_told(each) for each in lock.check(history).problems[:20]]
        registers = judge(lock.registers(history), Path(f"seed-{self._seed}"), STEPS_MAX)
        wrong += [f"key {each.key}: {each.reason}" for each in registers.violations]
        wrong += [f"lost: {each}" for each in registers.durability.lost if complete]
        unknown = sum(each.type == "info" for each in history.operations)
        if wrong:
            return Verdict.VIOLATION, unknown, wrong
        undecided = [f"key {each.key}: {each.reason}" for each in registers.undecided]
        return registers.result.verdict, unknown, undecided


def _told(problem: Problem) -> str:
    return f"lock, {problem.law}: {problem.name}: {problem.text}"
