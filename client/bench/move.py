"""What it costs to grow: a fourth node joins three under load, and gets its share.

One run and one load, so that what is compared was measured within a minute: quiet, while the node starts and joins, while replicas move,
and after. The load is paced, not as fast as can be: on a host whose cores are all taken, any further work shows as latency, whoever does
it. A caller that was held up asks at once, and its latency counts from the moment it was due.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from client.bench.load import percentile
from client.bench.peers import Batches, Finding
from client.bench.subject import Subject
from client.cli.output import note
from cluster.errors import TenfoldError
from proto.gen import meta_pb2

QUIET, JOINING, MOVING, AFTER = "quiet", "joining", "moving", "after"
P99_RATIO_MAX = 3.0
SHARE_MAX = 0.334
"""A third; a quarter is the fair share of the fourth."""
LOAD_BATCH = 500
FAILURE_PAUSE_S = 0.01

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Plan:
    """`keys` are loaded before; `seconds` is how long it is quiet, and how long it is looked at after."""

    keys: int
    callers: int
    rate_per_s: int
    seconds: float


FULL = Plan(keys=200_000, callers=32, rate_per_s=1000, seconds=15.0)
QUICK = Plan(keys=5_000, callers=8, rate_per_s=400, seconds=2.0)


@dataclass(slots=True)
class Phase:
    """What was asked in it."""

    name: str
    started: float
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: int = 0

    def document(self) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        return {
            "phase": self.name,
            "seconds": round(self.seconds, 2),
            "operations": len(ordered),
            "operations_per_s": round(len(ordered) / self.seconds, 1) if self.seconds else 0.0,
            "p50_ms": round(percentile(ordered, 0.5) * 1000, 3),
            "p99_ms": round(percentile(ordered, 0.99) * 1000, 3),
            "max_ms": round(percentile(ordered, 1.0) * 1000, 3),
            "failures": self.failures,
        }


class PacedLoad:
    """`callers` callers that together ask `rate_per_s` times a second, as far as answers come."""

    def __init__(self, operation: Operation, callers: int, rate_per_s: int, seed: int = 1) -> None:
        self._operation = operation
        self._pause_s = callers / rate_per_s
        self._random = random.Random(seed)
        self._callers = callers
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self.phases: list[Phase] = []

    def begin(self, name: str) -> None:
        """What is asked from now on belongs to this phase."""
        now = time.perf_counter()
        self._close(now)
        self.phases.append(Phase(name, now))
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._caller()) for _ in range(self._callers)]

    def _close(self, now: float) -> None:
        if self.phases:
            self.phases[-1].seconds = now - self.phases[-1].started

    async def _caller(self) -> None:
        clock = time.perf_counter
        due = clock() + self._random.uniform(0, self._pause_s)
        while not self._stopped:
            await asyncio.sleep(max(0.0, due - clock()))
            phase = self.phases[-1]
            try:
                await self._operation()
            except TenfoldError:
                phase.failures += 1
                await asyncio.sleep(FAILURE_PAUSE_S)
            else:
                phase.latencies.append(clock() - due)
            due = max(due + self._pause_s * self._random.uniform(0.5, 1.5), clock() - self._pause_s)

    async def stop(self) -> None:
        """Ends every caller; the exception of one that died is raised."""
        self._stopped = True
        self._close(time.perf_counter())
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()


@dataclass(frozen=True, slots=True)
class Outcome:
    phases: list[dict[str, Any]]
    findings: list[Finding]
    moved: int
    replicas: int


async def run(plan: Plan) -> Outcome:
    """TenfoldError if the cluster does not start, or the node does not get its share."""
    async with Subject(nodes=3, replicas=3) as subject:
        pairs = await _preload(subject, plan.keys)
        load = PacedLoad(_mixed(subject, pairs), plan.callers, plan.rate_per_s)
        try:
            before = await subject.cluster.shard_map()
            load.begin(QUIET)
            await asyncio.sleep(plan.seconds)
            load.begin(JOINING)
            (added,) = await subject.cluster.add()
            load.begin(MOVING)
            await subject.cluster.rebalance(lambda done, total, now: None)
            after = await subject.cluster.shard_map()
            load.begin(AFTER)
            await asyncio.sleep(plan.seconds)
        finally:
            await load.stop()
    phases = [phase.document() for phase in load.phases]
    moved, replicas = moved_replicas(before, after)
    note(f"bench: {added} holds {len(_holders(after) & {(s.id, added) for s in after.shards})} of {replicas} replicas")
    return Outcome(phases, findings(phases, moved / replicas), moved, replicas)


def findings(phases: list[dict[str, Any]], share: float) -> list[Finding]:
    """The two promises."""
    p99 = {phase["phase"]: phase["p99_ms"] for phase in phases}
    ratio = p99[MOVING] / p99[QUIET] if p99[QUIET] else None
    return [
        Finding("p99 while replicas move", "times the quiet p99", P99_RATIO_MAX, at_least=False, figure=ratio),
        Finding("replicas moved for a fourth node", "of all", SHARE_MAX, at_least=False, figure=share),
    ]


def moved_replicas(before: meta_pb2.ShardMap, after: meta_pb2.ShardMap) -> tuple[int, int]:
    """How many replicas are where none of their shard was, of how many."""
    return len(_holders(after) - _holders(before)), len(_holders(before))


def _holders(shard_map: meta_pb2.ShardMap) -> set[tuple[int, str]]:
    return {(shard.id, replica.node) for shard in shard_map.shards for replica in shard.replicas}


async def _preload(subject: Subject, keys: int) -> list[tuple[bytes, bytes]]:
    pairs = Batches(seed=5).pairs(keys)
    starts = iter(range(0, keys, LOAD_BATCH))

    async def loader() -> None:
        for start in starts:
            await subject.put_all(pairs[start : start + LOAD_BATCH])

    await asyncio.gather(*(loader() for _ in range(8)))
    note(f"bench: {keys:,} keys are loaded")
    return pairs


def _mixed(subject: Subject, pairs: list[tuple[bytes, bytes]]) -> Operation:
    """A put or a linearizable get of a key that is there, in turn at random."""
    chance, kv = random.Random(6), subject.client.kv

    async def operation() -> None:
        key, value = pairs[chance.randrange(len(pairs))]
        if chance.random() < 0.5:
            await kv.put(key, value)
            return
        found = await kv.get(key)
        assert found is not None and found.value == value, "a key that was loaded is there"

    return operation


COLUMNS = ("phase", "seconds", "operations/s", "p50 ms", "p99 ms", "max ms", "failed")


def table_rows(phases: list[dict[str, Any]]) -> list[list[object]]:
    return [
        [
            each["phase"],
            each["seconds"],
            round(each["operations_per_s"]),
            f"{each['p50_ms']:.2f}",
            f"{each['p99_ms']:.2f}",
            f"{each['max_ms']:.2f}",
            each["failures"],
        ]
        for each in phases
    ]
