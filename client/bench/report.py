"""What a benchmark leaves behind: JSON, the same as a table, and a plot of the grid. The only file here that writes files."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Okabe and Ito: told apart by colour-blind readers too."""


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def write(directory: Path, name: str, document: Mapping[str, Any], text: str) -> list[Path]:
    """`name`.json and `name`.txt in `directory`, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.json", directory / f"{name}.txt"]
    paths[0].write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(text + "\n", encoding="utf-8")
    return paths


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Throughput and p99 over callers, one line per replication factor; a panel for each kind of work. SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    works = list(dict.fromkeys(row["work"] for row in rows))
    figure, axes = pyplot.subplots(2, len(works), figsize=(3.4 * len(works), 6.0), squeeze=False, sharex=True)
    for column, work in enumerate(works):
        chosen = [row for row in rows if row["work"] == work]
        for line, measure in enumerate(("operations_per_s", "p99_ms")):
            _panel(axes[line][column], chosen, measure)
        axes[0][column].set_title(work)
        axes[1][column].set_xlabel("callers")
    axes[0][0].set_ylabel("operations per second")
    axes[1][0].set_ylabel("p99 of a request, ms")
    axes[0][0].legend(title="replication factor", fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg")
    pyplot.close(figure)


def _panel(axis: Any, rows: Sequence[Row], measure: str) -> None:
    factors = sorted({row["factor"] for row in rows})
    for factor, colour in zip(factors, COLOURS, strict=False):
        points = sorted((row["callers"], row[measure]) for row in rows if row["factor"] == factor)
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o", color=colour, label=str(factor))
    callers = sorted({row["callers"] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(callers, [str(count) for count in callers])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.grid(True, linewidth=0.3)
