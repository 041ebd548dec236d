"""`tenfold sim`: runs seeds of the simulator and says which of them went wrong, and how to see that again."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.output import Exit, Output, note
from cluster.errors import TenfoldError, invalid

if TYPE_CHECKING:
    from chaos.sim.run import Options, SeedResult

TAIL_LINES = 60
MINUTES_MAX = 600.0
SEEDS_MAX = 1_000_000

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """A whole cluster in one deterministic process."""


@app.command("run")
def run(
    seed: Annotated[
        int | None, typer.Option(help="One seed; drawn if neither this nor --seeds is given.", min=0)
    ] = None,
    seeds: Annotated[str, typer.Option(help="Several, such as 1..40; both ends are included.")] = "",
    minutes: Annotated[float, typer.Option(help="Virtual minutes under faults, for each seed.")] = 1.0,
    faults: Annotated[str, typer.Option(help="Kinds of faults, separated by commas; all or none.")] = "all",
    workload: Annotated[str, typer.Option(help="What the clients do.")] = "kv",
    nodes: Annotated[int, typer.Option(help="How many nodes; 0 leaves it to the seed.", min=0, max=9)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")] = False,
) -> None:
    """Run a cluster in virtual time, with every fault drawn from the seed, and judge it.

    Exit code 0: every seed ok; 1: a violation; 2: one undecided; 3: one never converged; 4: the run itself crashed.
    """
    try:
        options = [
            _options(each, minutes=minutes, faults=faults, workload=workload, nodes=nodes)
            for each in _seeds(seed, seeds)
        ]
    except TenfoldError as error:
        note(f"error: {error.message}")
        raise typer.Exit(Exit.USAGE) from None
    results = _run_all(options, minutes, faults, nodes)
    Output(json).result(document(results), _summary(results))
    raise typer.Exit(exit_code(results))


def _seeds(seed: int | None, seeds: str) -> Iterable[int]:
    if not seeds:
        return [seed if seed is not None else secrets.randbelow(SEEDS_MAX)]
    matched = re.fullmatch(r"(\d+)\.\.(\d+)", seeds)
    if matched is None or seed is not None:
        raise invalid("seeds", f"{seeds!r} is not like 1..40, or --seed is given too")
    first, last = int(matched[1]), int(matched[2])
    if not first <= last < first + SEEDS_MAX:
        raise invalid("seeds", f"{seeds}: there must be 1 to {SEEDS_MAX}")
    return range(first, last + 1)


def _options(seed: int, *, minutes: float, faults: str, workload: str, nodes: int) -> Options:
    from chaos.sim.run import Options
    from chaos.sim.schedule import NAMES

    if workload != "kv":
        raise invalid("workload", f"{workload!r}, must be kv")
    if not 0.05 <= minutes <= MINUTES_MAX:
        raise invalid("minutes", f"{minutes:g}, must be 0.05 to {MINUTES_MAX:g}")
    kinds = {"all": NAMES, "none": ()}.get(faults) if faults in ("all", "none") else tuple(faults.split(","))
    assert kinds is not None
    if unknown := [kind for kind in kinds if kind not in NAMES]:
        raise invalid("faults", f"{unknown[0]!r}, must be all, none or some of {', '.join(NAMES)}")
    return Options(seed=seed, duration_s=minutes * 60, nodes=nodes, kinds=kinds)


def _run_all(options: list[Options], minutes: float, faults: str, nodes: int) -> list[SeedResult]:
    from chaos.sim.run import run_seed

    results: list[SeedResult] = []
    for each in options:
        result = run_seed(each)
        results.append(result)
        told = f"seed {result.seed}: {result.verdict}, {result.operations} operations, {result.faults} faults"
        note(f"{told}, {result.virtual_s:.0f} s in {result.wall_s:.1f} s")
        if result.verdict != "ok":
            for line in (*result.tail[-TAIL_LINES:], *result.reasons):
                note(f"  {line}")
            again = f"tenfold sim run --seed {result.seed} --minutes {minutes:g} --faults {faults} --nodes {nodes}"
            note(f"  again: {again}")
    return results


def document(results: list[SeedResult]) -> dict[str, Any]:
    """The result as JSON knows it."""
    names = ("seed", "verdict", "trace_hash", "operations", "faults", "virtual_s", "wall_s", "unknown", "reasons")
    rows = [{name: getattr(result, name) for name in names} for result in results]
    wall_s = sum(result.wall_s for result in results)
    found: dict[str, Any] = {
        "verdict": worst(results),
        "seeds": rows,
        "ratio": round(sum(result.virtual_s for result in results) / wall_s, 1) if wall_s else 0.0,
    }
    if len(results) == 1:
        found["trace_hash"] = results[0].trace_hash
    return found


_CODES = (
    ("crash", Exit.CRASH),
    ("violation", Exit.FAILED),
    ("never-converged", Exit.NEVER_HEALED),
    ("unknown", Exit.UNKNOWN),
    ("ok", Exit.OK),
)
"""The worst first."""


def worst(results: list[SeedResult]) -> str:
    verdicts = {result.verdict for result in results}
    return next(name for name, _ in _CODES if name in verdicts)


def exit_code(results: list[SeedResult]) -> int:
    return int(dict(_CODES)[worst(results)])


def _summary(results: list[SeedResult]) -> str:
    told = document(results)
    good = sum(result.verdict == "ok" for result in results)
    operations, faults = (sum(getattr(result, name) for result in results) for name in ("operations", "faults"))
    return (
        f"{told['verdict']}: {good} of {len(results)} seeds ok; {operations} operations, {faults} faults; "
        f"{told['ratio']:g} times real time"
    )
