"""One seed from its draws to its verdict.

Two phases. Under faults only safety is asked. Then a random set of nodes that is enough for every shard is healed, and has
to converge while the rest stay down; then all. After that every key is read once more and the history is judged.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
import traceback
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chaos.checkers.linearizability import Verdict
from chaos.history import Recorder, header, parse
from chaos.judge import judge
from chaos.sim.cluster import SimCluster
from chaos.sim.knobs import draw_limits
from chaos.sim.loop import Process, SimLoop, run
from chaos.sim.nemesis import Nemesis
from chaos.sim.schedule import NAMES, Fault, draw_schedule
from chaos.sim.staleness import StaleReader
from chaos.sim.tastes import taste_of
from chaos.sim.transcript import Transcript
from chaos.sim.watching import CAUGHT_UP_S, Watcher
from chaos.workloads.kv import KvOptions, KvWorkload, Store, Value
from client.client import Client
from client.kv import Consistency
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.ring.shard_map import first_map

STEPS_MAX = 300_000
"""Of the checker per key: what takes longer is `unknown`, and a load that makes it so is a bad load."""
LOOK_S = 0.05
THOROUGH_EVERY = 10
CONVERGE_S = 60.0
DEADLINE_S = 8.0
CLIENTS = 8
IMPATIENT_SHARE = 0.01
IMPATIENT_S = 0.02

T = TypeVar("T")


class Options(msgspec.Struct, frozen=True):
    """What a seed is run with. `schedule` replaces the drawn one."""

    seed: int
    duration_s: float = 60.0
    nodes: int = 0  # 0: drawn
    shards: int = 3
    clients: int = CLIENTS
    rate_per_s: int = 110
    kinds: tuple[str, ...] = NAMES
    schedule: tuple[Fault, ...] | None = None
    shipped_limits: bool = False
    stale_bound: bool = False  # judge what stale reads say of their age


class SeedResult(msgspec.Struct):
    """`verdict` is ok, violation, unknown, never-converged or crash."""

    seed: int
    verdict: str
    trace_hash: str
    operations: int
    faults: int
    virtual_s: float
    wall_s: float
    unknown: int = 0
    applied: int = 0
    elections: int = 0
    reasons: list[str] = []
    tail: list[str] = []


class NeverConverged(Exception):
    """The healed nodes did not agree in time."""


class Violated(Exception):
    """An oracle has spoken."""


class _ProcessStore:
    """A client's facade, called from outside of its process. Some callers lose patience and cancel: then nobody knows what
    became of the operation."""

    def __init__(self, loop: SimLoop, process: Process, client: Client, chance: random.Random) -> None:
        self._loop, self._process, self._kv, self._chance = loop, process, client.kv, chance
        self._reads = 0

    async def put(self, key: str, value: str, *, deadline_s: float) -> int:
        return await self._call(self._kv.put(key, value, deadline_s=deadline_s), "put")

    async def get(self, key: str, *, deadline_s: float) -> Value | None:
        """By the lease every other time: it promises the same."""
        self._reads += 1
        consistency: Consistency = "lease" if self._reads % 2 else "linearizable"
        return await self._call(self._kv.get(key, consistency=consistency, deadline_s=deadline_s), "get")

    async def compare_and_set(self, key: str, value: str, *, version: int, deadline_s: float) -> int:
        work = self._kv.compare_and_set(key, value, version=version, deadline_s=deadline_s)
        return await self._call(work, "cas")

    async def _call(self, work: Coroutine[Any, Any, T], name: str) -> T:
        task = self._loop.start(self._process, work, name)
        if self._chance.random() < IMPATIENT_SHARE:
            self._loop.at(self._loop.now + self._chance.expovariate(1 / IMPATIENT_S), task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise TenfoldError(Code.UNKNOWN_OUTCOME, "the caller lost patience") from None


class Run:
    def __init__(self, options: Options) -> None:
        self.options = options
        chance = random.Random(f"{options.seed}/knobs")
        taste = taste_of(options.seed)
        nodes = options.nodes or taste.nodes or chance.choice((3, 3, 5))
        self.limits = DEFAULT if options.shipped_limits else draw_limits(chance, ranges=taste.ranges)
        self.chance = chance
        self.loop = SimLoop(options.seed, permute=chance.random() < 0.85)
        self.transcript = Transcript(lambda: self.loop.now)
        self.cluster = SimCluster(
            self.loop, self.transcript, options.seed, self.limits, nodes=nodes, shards=options.shards, replicas=3
        )
        schedule = options.schedule
        self.schedule: Sequence[Fault] = (
            schedule if schedule is not None else draw_schedule(options.seed, options.duration_s, options.kinds)
        )
        self.file = io.BytesIO()
        head = header(options.seed, {"duration_s": options.duration_s}, {"nodes": nodes, "shards": options.shards})
        self.recorder = Recorder(self.file, head, lambda: int(self.loop.now * 1e9))
        self.nemesis = Nemesis(self.cluster, self.recorder)
        self.watcher = Watcher(options.shards)
        self.stale = StaleReader(lambda: self.loop.now, random.Random(f"{options.seed}/stale"))
        self.operations = 0

    def execute(self) -> SeedResult:
        started = time.perf_counter()
        restore = self.transcript.listen()
        verdict, reasons = Verdict.OK.value, []
        try:
            run(self.loop, self._whole())
        except Violated:
            verdict = Verdict.VIOLATION.value
        except NeverConverged as error:
            verdict, reasons = "never-converged", [str(error)]
        except Exception as error:
            verdict, reasons = "crash", ["".join(traceback.format_exception(error))]
        finally:
            restore()
        reasons += self.loop.problems
        if self.cluster.oracles.breaches:
            verdict, reasons = Verdict.VIOLATION.value, self.cluster.oracles.breaches + reasons
        elif self.loop.problems:
            verdict = Verdict.VIOLATION.value
        verdict, unknown, more = self._judge(verdict)
        return SeedResult(
            seed=self.options.seed,
            verdict=verdict,
            trace_hash=self.transcript.hash(),
            operations=self.operations,
            faults=self.nemesis.injected,
            virtual_s=round(self.loop.now, 3),
            wall_s=round(time.perf_counter() - started, 3),
            unknown=unknown,
            applied=self.cluster.oracles.applied,
            elections=self.cluster.oracles.elections,
            reasons=reasons + more,
            tail=list(self.transcript.tail) if verdict != Verdict.OK.value else [],
        )

    def _judge(self, verdict: str) -> tuple[str, int, list[str]]:
        """The history's word; without final reads a history can only convict."""
        self.recorder.flush()
        data = self.file.getvalue()
        self.transcript.data(data)
        history = parse(data.split(b"\n"))
        stale = self.stale.check(history.operations) if self.options.stale_bound else []
        if stale:
            return Verdict.VIOLATION.value, 0, stale
        watched = self.watcher.check(history.operations) if verdict == Verdict.OK.value else self.watcher.breaches
        if watched:
            return Verdict.VIOLATION.value, 0, watched
        judgement = judge(history, Path(f"seed-{self.options.seed}"), STEPS_MAX)
        result = judgement.result
        reasons = [f"key {each.key}: {each.reason}" for each in judgement.violations]
        reasons += [f"lost: {each}" for each in judgement.durability.lost]
        if result.verdict is Verdict.VIOLATION:
            return Verdict.VIOLATION.value, result.unknown, reasons
        if verdict == Verdict.OK.value and result.verdict is Verdict.UNKNOWN:
            undecided = [f"key {each.key}: {each.reason}" for each in judgement.undecided]
            return Verdict.UNKNOWN.value, result.unknown, undecided
        return verdict, result.unknown, []

    # -- the run -------------------------------------------------------------------------------------------------------

    async def _whole(self) -> None:
        cluster, options = self.cluster, self.options
        for name in cluster.hosts:
            cluster.boot(name)
        cluster.open_clients(options.clients)
        await cluster.start_clients(DEADLINE_S)
        pairs = zip(cluster.client_processes, cluster.clients, strict=True)
        stores: list[Store] = [
            _ProcessStore(self.loop, process, client, random.Random(f"{options.seed}/patience/{process.host}"))
            for process, client in pairs
        ]
        kv = KvOptions(
            clients_per_key=5,
            operations_per_key=self.chance.choice((40, 80, 150)),
            rate_per_s=options.rate_per_s,
            deadline_s=self.chance.choice((1.5, 3.0, DEADLINE_S)),
        )
        watching = self.loop.start(cluster.client_processes[0], self.watcher.run(cluster.clients[0].kv), "watcher")
        await self.watcher.started.wait()
        workload = KvWorkload(self.recorder, stores, options.shards, options.seed, kv)
        load = self.loop.create_task(workload.run(), name="load")
        reader = self.stale.run(cluster.clients[-1].kv, lambda: workload.active)
        reading = self.loop.start(cluster.client_processes[-1], reader, "stale reader")
        looking = self.loop.create_task(self._look(), name="oracles")
        looking.add_done_callback(lambda done: load.cancel())
        self.nemesis.run(self.schedule)
        try:
            await self._until(self.loop.now + options.duration_s, looking)
            self.nemesis.heal()
            await self._converge(self._core(), looking)
            workload.stop()
            for name in cluster.hosts:
                if name not in cluster.up():
                    cluster.boot(name)
            await self._converge(list(cluster.hosts), looking)
            await asyncio.gather(load, return_exceptions=True)
            if looking.done():  # it has spoken, and ended the load
                looking.result()
            load.result()
            self.recorder.record("nemesis", "ok", "healed")
            await workload.read_back()
            await self._watch_catches_up(watching)
            self._look_once(thorough=True)
        finally:
            self.operations = workload.operations
            workload.stop()
            for task in (looking, load, watching, reading):
                task.cancel()
            await asyncio.gather(load, looking, watching, reading, return_exceptions=True)
            await cluster.close()

    async def _watch_catches_up(self, watching: asyncio.Task[None]) -> None:
        """Waits until the watcher was told the last acknowledged write of every key. NeverConverged."""
        self.recorder.flush()
        newest: dict[str, int] = {}
        for each in parse(self.file.getvalue().split(b"\n")).operations:
            if each.writes and each.type == "ok":
                newest[each.key] = max(each.version or 0, newest.get(each.key, 0))
        deadline = self.loop.now + CAUGHT_UP_S
        while (missing := self.watcher.behind(newest)) and not self.watcher.breaches:
            if watching.done():
                watching.result()
            if self.loop.now > deadline:
                raise NeverConverged(f"{CAUGHT_UP_S:g} s after reading back {missing}")
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        at = 0
        while True:
            await asyncio.sleep(LOOK_S)
            at += 1
            self._look_once(thorough=at % THOROUGH_EVERY == 0)

    def _look_once(self, *, thorough: bool) -> None:
        self.cluster.oracles.look(thorough=thorough)
        if self.cluster.oracles.breaches or self.loop.problems:
            raise Violated

    async def _until(self, moment: float, looking: asyncio.Task[None]) -> None:
        while self.loop.now < moment:
            await asyncio.sleep(min(LOOK_S, moment - self.loop.now))
            if looking.done():
                looking.result()

    # -- the second phase ----------------------------------------------------------------------------------------------

    def _core(self) -> list[str]:
        """Ends random nodes until no more can be missed, and starts the others."""
        cluster = self.cluster
        names = list(cluster.hosts)
        placed = self._placement()
        self.chance.shuffle(names)
        core = set(names)
        for name in names:
            left = core - {name}
            if all(2 * len(left & set(nodes)) > len(nodes) for nodes in placed):
                core = left
        for name in cluster.hosts:
            if name not in core:
                cluster.end(name, "kill")
            elif cluster.hosts[name].process is None:
                cluster.boot(name)
        self.transcript.note("run", f"healed: {sorted(core)}")
        return sorted(core)

    def _placement(self) -> list[list[str]]:
        cluster = self.cluster
        members = [(each.node, each.address, each.zone) for each in cluster.members]
        placed = first_map(bytes(16), members, cluster.shards, cluster.replication_factor)
        return [[replica.node for replica in shard.replicas] for shard in placed.shards]

    async def _converge(self, names: list[str], looking: asyncio.Task[None]) -> None:
        """Returns when every shard's replicas on `names` follow one leader and have applied its last entry."""
        deadline = self.loop.now + CONVERGE_S
        missing = "?"
        while missing:
            if self.loop.now > deadline:
                raise NeverConverged(f"{CONVERGE_S:g} s after healing {names}: {missing}")
            await self._until(self.loop.now + LOOK_S, looking)
            missing = self._missing(names)

    def _missing(self, names: list[str]) -> str:
        cluster = self.cluster
        for name in names:
            node = cluster.hosts[name].node
            if node is None:
                return f"{name} does not serve"
            if node.shards.quarantined:
                return f"{name} has quarantined {node.shards.quarantined}"
        for shard, nodes in enumerate(self._placement()):
            leader = cluster.leader(shard)
            if leader is None:
                return f"shard {shard} has no leader"
            replicas = cluster.replicas(shard)
            led = replicas[leader].core
            for name in [each for each in nodes if each in names]:
                core = replicas[name].core
                if core.term != led.term or core.leader != led.replica or core.applied_index + 200 < led.commit_index:
                    return f"{name} is at {core.term}/{core.applied_index} of shard {shard}, {leader} at {led.term}/{led.commit_index}"
        return ""


def run_seed(options: Options) -> SeedResult:
    """Runs one seed. It leaves nothing behind."""
    return Run(options).execute()
