"""Everything that clients do to a simulated cluster, and what is said of it in the end.

The key-value workload whose history is judged; raw callers on the same keys; and beside them a watcher, a reader of stale values,
counters and keys that expire, each with a judge of its own. All run in processes of their own, through faults. What is wrong
for sure is known before the end: `convict` looks at the history so far.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from chaos.checkers import register
from chaos.checkers.linearizability import Verdict
from chaos.history import History, Recorder, header, parse
from chaos.judge import judge
from chaos.sim.callers import Caller
from chaos.sim.cluster import SimCluster
from chaos.sim.counters import Counters
from chaos.sim.expiries import Expiries
from chaos.sim.staleness import StaleReader
from chaos.sim.stores import ClientStore, RawStore
from chaos.sim.tastes import Taste
from chaos.sim.watching import CAUGHT_UP_S, Watcher
from chaos.workloads.kv import KvOptions, KvWorkload, Store
from client.client import Client

STEPS_MAX = 300_000
"""Of the checker per key: what takes longer is `unknown`, and a load that makes it so is a bad load."""
CONVICT_STEPS_MAX = 20_000
DEADLINE_S = 8.0
RAW_PROCESSES = 2
CALLERS_PER_SHARD = 2
CALLER_PAUSE_S = 0.25
LOOK_S = 0.05

T = TypeVar("T")


class Behind(Exception):
    """The watcher was not told everything in time."""


class Load:
    def __init__(
        self, cluster: SimCluster, seed: int, taste: Taste, *, clients: int, rate_per_s: int, duration_s: float
    ) -> None:
        self.cluster = cluster
        self.file = io.BytesIO()
        options = {"duration_s": duration_s, "taste": taste.name}
        head = header(seed, options, {"nodes": len(cluster.hosts), "shards": cluster.shards})
        self.recorder = Recorder(self.file, head, lambda: int(cluster.loop.now * 1e9))
        self._seed, self._taste = seed, taste
        self._clients, self._rate_per_s = clients, rate_per_s
        self._chance = random.Random(f"{seed}/load")
        now = lambda: cluster.loop.now  # noqa: E731
        self.watcher = Watcher(cluster.shards)
        self.stale = StaleReader(now, random.Random(f"{seed}/stale"))
        self.counters = Counters(seed, cluster.shards, now, random.Random(f"{seed}/counters"))
        self.expiries = Expiries(seed, cluster.shards, now, random.Random(f"{seed}/expiries"))
        self.raw: list[RawStore] = []
        self.workload: KvWorkload | None = None
        self._stopped = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._endless: list[asyncio.Task[None]] = []
        self._ending: list[asyncio.Task[None]] = []  # they end by themselves once stopped
        self._judged: dict[str, int] = {}  # key -> operations judged so far

    @property
    def operations(self) -> int:
        """Of all kinds, by all clients."""
        beside = self.counters.operations + self.expiries.operations + self.stale.operations
        return beside + (self.workload.operations if self.workload is not None else 0)

    # -- its life ------------------------------------------------------------------------------------------------------

    async def start(self) -> asyncio.Task[None]:
        """Returns with the task of the workload, once the watcher watches."""
        cluster, chance = self.cluster, self._chance
        cluster.open_clients(self._clients)
        await cluster.start_clients(DEADLINE_S)
        stores: list[Store] = [
            ClientStore(cluster.loop, process, client, random.Random(f"{self._seed}/patience/{process.host}"))
            for process, client in zip(cluster.client_processes, cluster.clients, strict=True)
        ]
        options = KvOptions(
            clients_per_key=5,
            operations_per_key=chance.choice((40, 80, 150)),
            rate_per_s=max(1, round(self._rate_per_s * self._taste.rate)),
            deadline_s=chance.choice((1.5, 3.0, DEADLINE_S)),
        )
        workload = self.workload = KvWorkload(self.recorder, stores, cluster.shards, self._seed, options)
        self._watching = self._begin(0, self.watcher.run(cluster.clients[0].kv), "watcher")
        self._endless.append(self._watching)
        await self.watcher.started.wait()
        load = cluster.loop.create_task(workload.run(), name="load")
        keys = lambda: [] if self.quiet else workload.active  # noqa: E731
        quiet = lambda: self.quiet  # noqa: E731
        self._endless.append(self._begin(-1, self.stale.run(cluster.clients[-1].kv, keys), "stale reader"))
        counting = self.counters.run(self._client(1).kv, self._stopped, quiet)
        expiring = self.expiries.run(self._client(2).kv, self._stopped, quiet)
        self._ending += [self._begin(1, counting, "counters"), self._begin(2, expiring, "expiries")]
        self._start_callers(workload)
        if self._taste.idle:
            self._endless.append(cluster.loop.create_task(self._rest(workload), name="rests"))
        return load

    def _begin(self, client: int, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """In the process of that client."""
        return self.cluster.loop.start(self.cluster.client_processes[client % self._clients], work, name)

    def _client(self, number: int) -> Client:
        """There may be fewer."""
        return self.cluster.clients[number % self._clients]

    def _start_callers(self, workload: KvWorkload) -> None:
        cluster = self.cluster
        processes = cluster.open_raw(RAW_PROCESSES)
        for shard in range(1, cluster.shards + 1):
            for number in range(CALLERS_PER_SHARD):
                name = f"raw.{shard}.{number}"
                chance = random.Random(f"{self._seed}/{name}")
                store = RawStore(cluster, processes[(shard + number) % len(processes)], shard, chance)
                self.raw.append(store)
                caller = Caller(name, store, shard, chance, CALLER_PAUSE_S / self._taste.rate)
                self._ending.append(cluster.loop.create_task(caller.run(workload), name=name))

    @property
    def quiet(self) -> bool:
        return self.workload is not None and self.cluster.loop.now < self.workload.quiet_until

    async def _rest(self, workload: KvWorkload) -> None:
        """Now and then nobody asks for anything, long enough for shards to fall silent."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 4.0))
            workload.quiet_until = self.cluster.loop.now + self._chance.uniform(0.5, 4.0)

    def stop(self) -> None:
        """Nothing is begun after this."""
        self._stopped.set()
        if self.workload is not None:
            self.workload.stop()

    async def read_back(self) -> None:
        """Stopped and healed: the last word on everything. Behind; TenfoldError."""
        assert self.workload is not None and self._watching is not None
        await asyncio.gather(*self._ending)
        await self.workload.read_back()
        await self._begin(1, self.counters.read_back(self._client(1).kv), "counters")
        await self._begin(2, self.expiries.end(self._client(2).kv), "expiries")
        await self._watch_catches_up(self._watching)

    async def close(self) -> None:
        self.stop()
        for task in (*self._endless, *self._ending):
            task.cancel()
        await asyncio.gather(*self._endless, *self._ending, return_exceptions=True)

    async def _watch_catches_up(self, watching: asyncio.Task[None]) -> None:
        """Waits until the watcher was told the last acknowledged write of every key."""
        newest: dict[str, int] = {}
        for each in self.history().operations:
            if each.writes and each.type == "ok":
                newest[each.key] = max(each.version or 0, newest.get(each.key, 0))
        deadline = self.cluster.loop.now + CAUGHT_UP_S
        while (missing := self.watcher.behind(newest)) and not self.watcher.breaches:
            if watching.done():
                watching.result()
            if self.cluster.loop.now > deadline:
                raise Behind(f"{CAUGHT_UP_S:g} s after reading back {missing}")
            await asyncio.sleep(LOOK_S)

    # -- its judges ----------------------------------------------------------------------------------------------------

    def history(self) -> History:
        """So far; what is under way counts as unknown."""
        self.recorder.flush()
        return parse(self.file.getvalue().split(b"\n"))

    def breaches(self) -> list[str]:
        """What is wrong already, without a look at the history."""
        return [*self.watcher.breaches, *self.expiries.breaches, *(each for raw in self.raw for each in raw.breaches)]

    def convict(self) -> list[str]:
        """What is wrong already in the history. It can only convict: the last reads are yet to come."""
        wrong = []
        for key, operations in register.by_key(self.history().operations).items():
            if len(operations) == self._judged.get(key):
                continue
            self._judged[key] = len(operations)
            finding = register.check_key(operations, CONVICT_STEPS_MAX)
            if finding.verdict is Verdict.VIOLATION:
                wrong.append(f"key {key}: {finding.reason}")
        return wrong

    def judge(self, *, complete: bool) -> tuple[Verdict, int, list[str]]:
        """The verdict on all that clients saw, how many operations are in doubt, and why. Only a `complete` one can acquit."""
        history = self.history()
        operations = history.operations
        wrong = [*self.breaches(), *self.counters.check()]
        if complete:
            wrong += self.watcher.check(operations)
        judgement = judge(history, Path(f"seed-{self._seed}"), STEPS_MAX)
        wrong += [f"key {each.key}: {each.reason}" for each in judgement.violations]
        wrong += [f"lost: {each}" for each in judgement.durability.lost]
        if wrong:
            return Verdict.VIOLATION, judgement.result.unknown, wrong
        undecided = [f"key {each.key}: {each.reason}" for each in judgement.undecided]
        return judgement.result.verdict, judgement.result.unknown, undecided
