"""One seed from its draws to its verdict.

Two phases. Under faults only safety is asked. Then a random set of nodes that is enough for every shard is healed, and has
to converge while the rest stay down; then all. After that every key is read once more and the history is judged.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Sequence
from types import MappingProxyType

import msgspec

from chaos.checkers.linearizability import Verdict
from chaos.sim.cluster import SimCluster
from chaos.sim.knobs import CLIENTS, draw_limits
from chaos.sim.load import Behind, Load
from chaos.sim.lock_load import RANGES as LOCK_RANGES
from chaos.sim.lock_load import LockLoad
from chaos.sim.loop import SimLoop, run
from chaos.sim.nemesis import Nemesis
from chaos.sim.schedule import NAMES, PROMPT, Fault, draw_schedule
from chaos.sim.tastes import taste_of
from chaos.sim.transcript import Transcript
from cluster.limits import DEFAULT
from proto.gen.meta_pb2 import Replica

LOOK_S = 0.1
THOROUGH_EVERY = 10
CONVICT_EVERY = 30
CONVERGE_S = 60.0
SETTLE_LOOK_S = 0.02


class Options(msgspec.Struct, frozen=True):
    """What a seed is run with. `schedule` replaces the drawn one."""

    seed: int
    duration_s: float = 60.0
    nodes: int = 0  # 0: drawn
    shards: int = 0  # 0: drawn
    clients: int = CLIENTS
    rate_per_s: int = 60
    kinds: tuple[str, ...] = NAMES
    schedule: tuple[Fault, ...] | None = None
    shipped_limits: bool = False
    stale_bound: bool = True  # judge what stale reads say of their age, where no fault holds messages up
    workload: str = "kv"  # a name of WORKLOADS


WORKLOADS: MappingProxyType[str, type[Load] | type[LockLoad]] = MappingProxyType({"kv": Load, "lock": LockLoad})


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


class Run:
    def __init__(self, options: Options) -> None:
        self.options = options
        chance = random.Random(f"{options.seed}/knobs")
        taste = taste_of(options.seed)
        nodes = options.nodes or taste.nodes or chance.choice((3, 3, 5))
        shards = options.shards or taste.shards or chance.choice((1, 2, 3))
        ranges = taste.ranges if options.workload == "kv" else MappingProxyType({**taste.ranges, **LOCK_RANGES})
        self.limits = DEFAULT if options.shipped_limits else draw_limits(chance, ranges=ranges)
        self.chance = chance
        self.loop = SimLoop(options.seed, permute=chance.random() < 0.85)
        self.transcript = Transcript(lambda: self.loop.now)
        self.cluster = SimCluster(
            self.loop, self.transcript, options.seed, self.limits, nodes=nodes, shards=shards, replicas=3
        )
        schedule = options.schedule
        self.schedule: Sequence[Fault] = (
            schedule if schedule is not None else draw_schedule(options.seed, options.duration_s, options.kinds)
        )
        self.load = WORKLOADS[options.workload](
            self.cluster,
            options.seed,
            taste,
            clients=options.clients,
            rate_per_s=options.rate_per_s,
            duration_s=options.duration_s,
        )
        self.nemesis = Nemesis(self.cluster, self.load.recorder)

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
        unknown, more = 0, list[str]()
        try:
            verdict, unknown, more = self._judge(verdict)
        except Exception as error:
            verdict, reasons = "crash", [*reasons, "".join(traceback.format_exception(error))]
        return SeedResult(
            seed=self.options.seed,
            verdict=verdict,
            trace_hash=self.transcript.hash(),
            operations=self.load.operations,
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
        """What the clients saw, in the light of how the run ended."""
        said, unknown, reasons = self.load.judge(complete=verdict == Verdict.OK.value)
        self.transcript.data(self.load.file.getvalue())
        judged = self.options.stale_bound and PROMPT.issuperset(fault.kind for fault in self.schedule)
        stale = self.load.stale.check(self.load.history().operations) if judged else []
        if said is Verdict.VIOLATION or stale:
            return Verdict.VIOLATION.value, unknown, reasons + stale
        if verdict == Verdict.OK.value:
            return said.value, unknown, reasons
        return verdict, unknown, []

    # -- the run -------------------------------------------------------------------------------------------------------

    async def _whole(self) -> None:
        cluster, options = self.cluster, self.options
        for name in cluster.hosts:
            cluster.boot(name)
        try:
            load = await self.load.start()
            cluster.map()  # kept, should nobody serve when it is asked for
            looking = self.loop.create_task(self._look(), name="oracles")
            looking.add_done_callback(lambda done: load.cancel())
            self.nemesis.run(self.schedule)
            try:
                await self._until(self.loop.now + options.duration_s, looking)
                await self._heal(load, looking)
            finally:
                looking.cancel()
                load.cancel()
                await asyncio.gather(load, looking, return_exceptions=True)
        finally:
            await self.load.close()
            await cluster.close()

    async def _heal(self, load: asyncio.Task[None], looking: asyncio.Task[None]) -> None:
        cluster = self.cluster
        self.nemesis.heal()
        await self._converge(self._core(), looking)
        self.load.stop()
        for name in cluster.hosts:
            if name not in cluster.up():
                cluster.boot(name)
        await self._converge(None, looking)
        await asyncio.gather(load, return_exceptions=True)
        if looking.done():  # it has spoken, and ended the load
            looking.result()
        load.result()
        self.load.recorder.record("nemesis", "ok", "healed")
        try:
            await self.load.read_back()
        except Behind as error:
            raise NeverConverged(str(error)) from None
        await self._settle()
        self._look_once(thorough=True)

    async def _look(self) -> None:
        at = 0
        while True:
            await asyncio.sleep(LOOK_S)
            at += 1
            self._look_once(thorough=at % THOROUGH_EVERY == 0)
            if at % CONVICT_EVERY == 0 and self.load.convict():
                raise Violated

    def _look_once(self, *, thorough: bool) -> None:
        self.cluster.oracles.look(thorough=thorough)
        if self.cluster.oracles.breaches or self.loop.problems or self.load.breaches():
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
        good = set(names) - set(self.nemesis.damage.damaged())
        sides = [side for shard in range(cluster.shards + 1) for side in cluster.sides(shard)]
        self.chance.shuffle(names)
        core = set(names)
        for name in names:
            left = core - {name}
            if all(side.carried_by(left & good) for side in sides):
                core = left
        for name in cluster.hosts:
            if name not in core:
                cluster.end(name, "kill")
            elif cluster.hosts[name].process is None:
                cluster.boot(name)
        self.transcript.note("run", f"healed: {sorted(core)}")
        return sorted(core)

    async def _converge(self, core: list[str] | None, looking: asyncio.Task[None]) -> None:
        """Returns when every shard's replicas on the nodes of `core` follow one leader and have applied its last entry; without
        `core` those of all, and nothing is on its way any more."""
        patience_s = CONVERGE_S
        if self.cluster.missing:  # whose copies are rebuilt only once they have been away for so long
            patience_s += self.limits.down_after_ms / 1000
        deadline = self.loop.now + patience_s
        missing = "?"
        while missing:
            if self.loop.now > deadline:
                raise NeverConverged(f"{patience_s:g} s after healing {core or 'all'}: {missing}")
            await self._until(self.loop.now + LOOK_S, looking)
            missing = self._missing(list(self.cluster.hosts) if core is None else core)
            missing = missing or (self._moving() if core is None else "")

    def _missing(self, names: list[str]) -> str:
        cluster = self.cluster
        for name in names:
            if name not in cluster.hosts:
                continue  # drained before the faults ended, and taken away by now
            node = cluster.hosts[name].node
            if node is None:
                return f"{name} does not serve"
            if node.shards.quarantined:
                return f"{name} has quarantined {node.shards.quarantined}"
        for shard in range(cluster.shards + 1):
            leader = cluster.leader(shard)
            if leader is None:
                return f"shard {shard} has no leader"
            replicas = cluster.replicas(shard)
            led = replicas[leader].core
            for row in cluster.placed(shard).replicas:
                if row.node not in names or row.stage != Replica.VOTER:
                    continue
                replica = replicas.get(row.node)
                if replica is None or replica.core.replica != row.id:
                    return f"{row.node} has no replica {row.id} of shard {shard}"
                core = replica.core
                if core.term != led.term or core.leader != led.replica or core.applied_index + 200 < led.commit_index:
                    return f"{row.node} is at {core.term}/{core.applied_index} of shard {shard}, {leader} at {led.term}/{led.commit_index}"
        return f"{damaged} are not whole" if (damaged := set(names) & set(self.nemesis.damage.damaged())) else ""

    async def _settle(self) -> None:
        """Nobody asks for anything any more: of every shard all voters come to one state, that of their leader's whole log."""
        for shard in range(self.cluster.shards + 1):
            deadline = self.loop.now + CONVERGE_S
            while missing := self._unsettled(shard):
                if self.loop.now > deadline:
                    raise NeverConverged(f"{CONVERGE_S:g} s after healing all, and with nobody who asks: {missing}")
                await asyncio.sleep(SETTLE_LOOK_S)

    def _unsettled(self, shard: int) -> str:
        cluster = self.cluster
        leader, replicas = cluster.leader(shard), cluster.replicas(shard)
        if leader is None:
            return f"shard {shard} has no leader"
        last = replicas[leader].core.log.last_index
        digests: dict[str, int] = {}
        for name in cluster.holders(shard):
            node, replica = cluster.hosts[name].node, replicas.get(name)
            if node is None or replica is None:
                return f"{name} has no replica of shard {shard}"
            at = replica.state.applied_index
            if at != last or replica.core.applied_index != last or replica.installing or node.batch:
                return f"{name} has applied {at} of shard {shard}, whose log ends at {last} on {leader}"
            digests[name] = replica.state.digest()
        if len(set(digests.values())) > 1:
            cluster.oracles.breach(f"replicas of shard {shard} differ at applied index {last}: {digests}")
            raise Violated
        return ""

    def _moving(self) -> str:
        """What is on its way still."""
        for shard in self.cluster.map().shards:
            if on_its_way := [each for each in shard.replicas if each.stage != Replica.VOTER]:
                return f"shard {shard.id} has {on_its_way}"
        return f"the operator is at {busy}" if (busy := self.nemesis.members.busy) else ""


def run_seed(options: Options) -> SeedResult:
    """Runs one seed. It leaves nothing behind."""
    return Run(options).execute()
