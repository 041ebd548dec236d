"""What replication costs: factor 1, 3 and 5 on five nodes, by callers, by batch size, and reads by consistency.

The number of nodes stays the same, so only the factor differs. Keys are random, fsync is on, all of it runs on one host:
nodes and load share its cores, so compare cells with each other and not with figures of other machines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from client.bench.load import Measurement, Operation, measure
from client.bench.subject import KEY_BYTES, VALUE_BYTES, Subject
from client.cli.output import note
from client.kv import Consistency

NODES = 5
BATCH = 100
READ_KEYS = 10_000
CONSISTENCIES: tuple[Consistency, ...] = ("linearizable", "lease", "stale")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of the grid, and for how long a cell (seconds)."""

    factors: tuple[int, ...]
    callers: tuple[int, ...]
    seconds: float
    warmup_s: float

    def works(self) -> list[str]:
        return ["put", f"batch of {BATCH}", *(f"get, {consistency}" for consistency in CONSISTENCIES)]

    def cells(self) -> Iterator[tuple[str, int]]:
        return ((work, callers) for work in self.works() for callers in self.callers)


FULL = Plan(factors=(1, 3, 5), callers=(1, 64, 256), seconds=3.0, warmup_s=0.5)
QUICK = Plan(factors=(1, 3, 5), callers=(1, 64), seconds=0.6, warmup_s=0.2)


async def run(plan: Plan) -> list[dict[str, Any]]:
    """One row per cell. TenfoldError if a cluster does not start."""
    rows: list[dict[str, Any]] = []
    for factor in plan.factors:
        async with Subject(nodes=NODES, replicas=factor) as subject:
            work = _Works(subject)
            await work.preload()
            for name, callers in plan.cells():
                usage = subject.usage()
                found = await measure(work.named(name), callers, usage, seconds=plan.seconds, warmup_s=plan.warmup_s)
                rows.append(row(factor, name, callers, found))
                note(f"bench: factor {factor}, {name}, {callers} callers: {found.per_second:,.0f} operations/s")
    return rows


def row(factor: int, work: str, callers: int, found: Measurement) -> dict[str, Any]:
    return {"factor": factor, "work": work, "callers": callers, **found.document()}


class _Works:
    """The operations that cells are made of."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._random = random.Random(1)
        self._value = self._random.randbytes(VALUE_BYTES)
        self._keys = [self._random.randbytes(KEY_BYTES) for _ in range(READ_KEYS)]

    async def preload(self) -> None:
        for start in range(0, READ_KEYS, 1000):
            await self._subject.put_all([(key, self._value) for key in self._keys[start : start + 1000]])

    def named(self, name: str) -> Operation:
        """The operation of one of `Plan.works`; KeyError for another."""
        reads = {f"get, {consistency}": consistency for consistency in CONSISTENCIES}
        if name in reads:
            return self._get(reads[name])
        return {"put": self._put, f"batch of {BATCH}": self._batch}[name]()

    def _put(self) -> Operation:
        put, key, value = self._subject.client.kv.put, self._random.randbytes, self._value

        async def operation() -> int:
            await put(key(KEY_BYTES), value)
            return 1

        return operation

    def _batch(self) -> Operation:
        put_all, key, value = self._subject.put_all, self._random.randbytes, self._value

        async def operation() -> int:
            await put_all([(key(KEY_BYTES), value) for _ in range(BATCH)])
            return BATCH

        return operation

    def _get(self, consistency: Consistency) -> Operation:
        get, choose, keys, value = self._subject.client.kv.get, self._random.choice, self._keys, self._value

        async def operation() -> int:
            found = await get(choose(keys), consistency=consistency)
            assert found is not None and found.value == value, "a key that was loaded is there"
            return 1

        return operation


COLUMNS = (
    "factor",
    "work",
    "callers",
    "operations/s",
    "p50 ms",
    "p99 ms",
    "node CPU us/op",
    "client CPU us/op",
    "failed",
)


def table_rows(rows: list[dict[str, Any]]) -> list[list[object]]:
    return [
        [
            each["factor"],
            each["work"],
            each["callers"],
            round(each["operations_per_s"]),
            f"{each['p50_ms']:.2f}",
            f"{each['p99_ms']:.2f}",
            f"{each['nodes_cpu_us_per_operation']:.1f}",
            f"{each['client_cpu_us_per_operation']:.1f}",
            sum(each["failures"].values()),
        ]
        for each in rows
    ]
