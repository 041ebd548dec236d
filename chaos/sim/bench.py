"""`tenfold sim bench`: how fast the simulator is, as virtual seconds for each second of CPU, at a fixed size and over fixed seeds.

One seed of every taste, so that faults and load are what runs of many seeds have on average. All oracles and judges are on; a seed
that does not end ok makes the figure worthless. CPU time, since it is what a run costs on a machine that does other things too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chaos.sim.knobs import CLIENTS
from chaos.sim.run import Options, SeedResult, run_seed
from client.bench.report import machine, write
from client.cli.output import render_table

NODES = 5
SHARDS = 3
SEEDS = tuple(range(1, 9))
MINUTES = 0.5
WARM_UP_S = 2.0
COLUMNS = ("seed", "virtual s", "CPU s", "ratio", "operations/s", "faults/s", "verdict")


class Measured(NamedTuple):
    result: SeedResult
    cpu_s: float

    def row(self) -> dict[str, Any]:
        seed, verdict, trace = self.result.seed, self.result.verdict, self.result.trace_hash
        return {"seed": seed, **figures([self]), "verdict": verdict, "trace_hash": trace}


def measure(seeds: Sequence[int], minutes: float, tell: Callable[[str], None]) -> list[Measured]:
    """Runs the seeds one after the other. The first run of a process pays for imports, so one goes ahead that does not count."""
    options = Options(seeds[0], duration_s=WARM_UP_S, nodes=NODES, shards=SHARDS, clients=CLIENTS)
    run_seed(options)
    found: list[Measured] = []
    for seed in seeds:
        started = time.process_time()
        result = run_seed(Options(seed, duration_s=minutes * 60, nodes=NODES, shards=SHARDS, clients=CLIENTS))
        found.append(Measured(result, time.process_time() - started))
        tell(f"bench: seed {seed}: {result.verdict}, {result.virtual_s / found[-1].cpu_s:.1f} times real time")
    return found


def figures(measured: Sequence[Measured]) -> dict[str, float]:
    """Of all of them together."""
    virtual_s = sum(each.result.virtual_s for each in measured)
    cpu_s = sum(each.cpu_s for each in measured)
    return {
        "virtual_s": round(virtual_s, 1),
        "cpu_s": round(cpu_s, 2),
        "ratio": round(virtual_s / cpu_s, 2),
        "operations_per_s": round(sum(each.result.operations for each in measured) / virtual_s, 1),
        "faults_per_s": round(sum(each.result.faults for each in measured) / virtual_s, 2),
    }


def report(measured: Sequence[Measured], out: Path) -> tuple[dict[str, Any], str, list[Path]]:
    """The document, the same as a table, and where both were written."""
    rows, together = [each.row() for each in measured], figures(measured)
    size = {"nodes": NODES, "data_shards": SHARDS, "clients": CLIENTS}
    document = {"benchmark": "sim", "machine": machine(), **size, **together, "seeds": rows}
    cells = [[value for name, value in row.items() if name != "trace_hash"] for row in rows]
    text = render_table(COLUMNS, [*cells, ["all", *together.values(), ""]])
    return document, text, write(out, "sim", document, text)
