"""Ratios that the product promises, each against a yardstick measured in the same minutes.

The machine's speed drifts, so what is compared runs in turn, round after round, and the figure is the median of the
rounds' ratios. Keys are random everywhere: with one fixed key etcd is about three times faster.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from client.bench.etcd import EtcdClient, EtcdCluster, installed
from client.bench.load import Measurement, Operation, Usage, measure
from client.bench.plain import PlainClient
from client.bench.subject import KEY_BYTES, VALUE_BYTES, Subject
from client.cli.output import note
from cluster.wire.channel import dial

BATCH = 100
BATCH_CALLERS = 16
MIB = 1024 * 1024

FLOOR_RATIO_MIN = 0.2
ETCD_RATIO_MIN = 1.5
PLAIN_RATIO_MIN = {64: 3.0, 256: 6.0}
IDLE_PERCENT_MAX = 5.0
RESIDENT_MIB_MAX = 500.0

IDLE_NODES = 5
IDLE_SETTLE_S = 5.0
MEMORY_KEYS = 1_000_000
MEMORY_BATCH = 500
MEMORY_CALLERS = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise: what was measured, in the promise's unit, against its bound. `skipped` says why it was not."""

    name: str
    unit: str
    bound: float
    at_least: bool
    figure: float | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    skipped: str = ""

    @property
    def met(self) -> bool | None:
        """None where nothing was measured: that is no pass."""
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.at_least else self.figure < self.bound

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "figure": self.figure if self.figure is None else round(self.figure, 3),
            "bound": self.bound,
            "bound_is": "at least" if self.at_least else "below",
            "met": self.met,
            "skipped": self.skipped,
            "rounds": self.rounds,
        }


def ratio(name: str, bound: float, ours: str, theirs: str, rounds: list[dict[str, float]]) -> Finding:
    """The median over the rounds of ours / theirs."""
    figure = median(each[ours] / each[theirs] for each in rounds)
    return Finding(name, "times", bound, at_least=True, figure=figure, rounds=rounds)


class Batches:
    """Batches of random-key puts as operations for the load: the same bytes for everyone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.value = self._random.randbytes(VALUE_BYTES)

    def key(self) -> bytes:
        return self._random.randbytes(KEY_BYTES)

    def pairs(self, count: int) -> list[tuple[bytes, bytes]]:
        randbytes, value = self._random.randbytes, self.value
        return [(randbytes(KEY_BYTES), value) for _ in range(count)]


async def batches(rounds: int, seconds: float) -> list[Finding]:
    """Batches of 100 from 16 callers on three nodes: against our own log alone, and against etcd where it is installed."""
    load = Batches(seed=2)
    seen: list[dict[str, float]] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenfold-bench-")))
        subject = await stack.enter_async_context(Subject(nodes=3, replicas=3))
        ours = _batch_of(subject, load)
        etcd = await _etcd(stack, directory, load) if installed() else None
        for number in range(rounds):
            figures = {"log_alone": await log_alone(seconds, directory)}
            found = await _window(ours, BATCH_CALLERS, subject.usage(), seconds)
            figures |= {
                "tenfold": found.per_second,
                "nodes_cpu_us": found.nodes_cpu_us,
                "client_cpu_us": found.client_cpu_us,
            }
            if etcd is not None:
                figures["etcd"] = (await _window(etcd[0], BATCH_CALLERS, etcd[1], seconds)).per_second
            seen.append(figures)
            told = ", ".join(
                f"{name} {figures[name]:,.0f}" for name in ("log_alone", "tenfold", "etcd") if name in figures
            )
            note(f"bench: round {number + 1}, puts/s: {told}")
    against_log = ratio("batches of 100, against the log alone", FLOOR_RATIO_MIN, "tenfold", "log_alone", seen)
    name = "batches of 100, against etcd's Txn"
    if not installed():
        missing = "etcd is not installed (package etcd-server)"
        return [against_log, Finding(name, "times", ETCD_RATIO_MIN, at_least=True, skipped=missing)]
    return [against_log, ratio(name, ETCD_RATIO_MIN, "tenfold", "etcd", seen)]


def _batch_of(subject: Subject, load: Batches) -> Operation:
    async def operation() -> int:
        await subject.put_all(load.pairs(BATCH))
        return BATCH

    return operation


async def _etcd(stack: AsyncExitStack, directory: Path, load: Batches) -> tuple[Operation, Usage]:
    """The same operation on an etcd cluster that lives until `stack` ends, and what its nodes use."""
    cluster = await stack.enter_async_context(EtcdCluster(directory))
    client = await stack.enter_async_context(EtcdClient(cluster.addresses))

    async def operation() -> int:
        await client.put_all(load.pairs(BATCH))
        return BATCH

    return operation, Usage(cluster.pids)


async def _window(operation: Operation, callers: int, usage: Usage, seconds: float) -> Measurement:
    found = await measure(operation, callers, usage, seconds=seconds, warmup_s=min(0.5, seconds / 4))
    if not found.operations:
        raise RuntimeError(f"no operation succeeded: {found.failures}")
    return found


async def log_alone(seconds: float, directory: Path) -> float:
    """Operations per second of the storage log by itself: append, CRC, fdatasync, batches of 100, in one process."""
    command = [sys.executable, "-m", "node.storage.floor", "--seconds", str(seconds), "--dir", str(directory)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    written, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"node.storage.floor ended {process.returncode}")
    return float(json.loads(written)["operations_per_s"])


async def singles(rounds: int, seconds: float) -> list[Finding]:
    """Concurrent single puts of one client process: `Client`, which joins them, against one call per put."""
    load = Batches(seed=3)
    findings = []
    async with Subject(nodes=3, replicas=3) as subject, PlainClient(subject.addresses, dial) as plain:

        async def joined() -> int:
            await subject.client.kv.put(load.key(), load.value)
            return 1

        async def one_call() -> int:
            await plain.put(load.key(), load.value)
            return 1

        for callers, bound in PLAIN_RATIO_MIN.items():
            seen = []
            for number in range(rounds):
                ours = await _window(joined, callers, subject.usage(), seconds)
                theirs = await _window(one_call, callers, subject.usage(), seconds)
                seen.append({"tenfold": ours.per_second, "plain": theirs.per_second})
                note(
                    f"bench: round {number + 1}, {callers} callers: "
                    f"joined {ours.per_second:,.0f}, one call each {theirs.per_second:,.0f} puts/s"
                )
            name = f"single puts, {callers} callers, against one call per put"
            findings.append(ratio(name, bound, "tenfold", "plain", seen))
    return findings


async def idle(seconds: float) -> Finding:
    """CPU of five nodes that nobody asks anything, together, in percent of one core."""
    async with Subject(nodes=IDLE_NODES, replicas=3) as subject:
        await asyncio.sleep(IDLE_SETTLE_S)
        usage = subject.usage()
        before = usage.cpu_seconds()
        await asyncio.sleep(seconds)
        percent = (usage.cpu_seconds() - before) / seconds * 100
    note(f"bench: {IDLE_NODES} idle nodes use {percent:.1f}% of one core")
    return Finding("five idle nodes, twelve shards", "% of one core", IDLE_PERCENT_MAX, at_least=False, figure=percent)


async def memory(keys: int = MEMORY_KEYS) -> Finding:
    """Resident memory of the largest of three nodes, each of which holds every key."""
    load = Batches(seed=4)
    async with Subject(nodes=3, replicas=3) as subject:
        left = iter(range(0, keys, MEMORY_BATCH))

        async def loader() -> None:
            for start in left:
                await subject.put_all(load.pairs(min(MEMORY_BATCH, keys - start)))
                if start % 100_000 == 0:
                    note(f"bench: {start:,} of {keys:,} keys")

        await asyncio.gather(*(loader() for _ in range(MEMORY_CALLERS)))
        held = await subject.client.kv.count()
        if held != keys:
            raise RuntimeError(f"the cluster holds {held:,} keys, not {keys:,}")
        await asyncio.sleep(IDLE_SETTLE_S)
        resident = [size / MIB for size in subject.usage().resident_bytes()]
    note(f"bench: resident {', '.join(f'{each:.0f}' for each in resident)} MiB")
    sizes: dict[str, float] = {f"node_{number}_mib": size for number, size in enumerate(resident, 1)}
    name = f"a node with {keys:,} keys"
    return Finding(name, "MiB resident", RESIDENT_MIB_MAX, at_least=False, figure=max(resident), rounds=[sizes])


COLUMNS = ("promise", "measured", "unit", "bound", "verdict")


def table_rows(findings: list[Finding]) -> list[list[object]]:
    return [
        [
            each.name,
            "-" if each.figure is None else f"{each.figure:.2f}",
            each.unit,
            f"{'>=' if each.at_least else '<'} {each.bound:g}",
            f"skipped: {each.skipped}" if each.met is None else "met" if each.met else "NOT MET",
        ]
        for each in findings
    ]
