"""`tenfold sim`: runs seeds of the simulator and says which of them went wrong, how to see that again, and what of it matters."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chaos.cli import seconds
from chaos.sim.bugs_cli import bugs
from chaos.sim.knobs import CLIENTS
from client.cli.output import Exit, Output, fail, note
from cluster.errors import invalid

if TYPE_CHECKING:
    from chaos.sim.case import Case
    from chaos.sim.run import Options

MINUTES_MAX = 600.0
SEEDS_MAX = 1_000_000
JOBS_MAX = 64

app = typer.Typer(no_args_is_help=True)
app.command("bugs")(bugs)

Minutes = Annotated[float, typer.Option(help="Virtual minutes under faults, for each seed.")]
Faults = Annotated[
    str,
    typer.Option(
        help="Kinds or groups of faults, separated by commas: all, damage, members, none. Without it the seed decides: all, in "
        "half of the seeds damage too, in half of them members."
    ),
]
Workload = Annotated[str, typer.Option(help="What the clients do.")]
Nodes = Annotated[int, typer.Option(help="How many nodes; 0 leaves it to the seed.", min=0, max=9)]
Shards = Annotated[
    int, typer.Option("--data-shards", help="How many data shards; 0 leaves it to the seed.", min=0, max=15)
]
Clients = Annotated[int, typer.Option(help="How many clients, beside two processes of raw callers.", min=1, max=64)]
Bug = Annotated[str, typer.Option(help="A bug of chaos/bugs to put in.", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")]


@app.callback()
def group() -> None:
    """A whole cluster in one deterministic process."""


@app.command("run")
def run(
    seed: Annotated[
        int | None, typer.Option(help="One seed; drawn if neither this nor --seeds is given.", min=0)
    ] = None,
    seeds: Annotated[str, typer.Option(help="Several, such as 1..40; both ends are included.")] = "",
    minutes: Minutes = 1.0,
    faults: Faults = "",
    workload: Workload = "kv",
    nodes: Nodes = 0,
    data_shards: Shards = 0,
    clients: Clients = CLIENTS,
    jobs: Annotated[int, typer.Option(help="Seeds at a time, each in a process.", min=1, max=JOBS_MAX)] = 1,
    budget: Annotated[
        str, typer.Option("--for", help="Begin seeds as long as this, such as 60m, instead of a number of them.")
    ] = "",
    case: Annotated[Path | None, typer.Option(help="A case written by `sim shrink`, instead of seeds.")] = None,
    bug: Bug = "",
    json: Json = False,
) -> None:
    """Run a cluster in virtual time, with every fault drawn from the seed, and judge it.

    Exit code 0: every seed ok; 1: a violation; 2: one undecided; 3: one never converged; 4: the run itself crashed.
    """
    from chaos.sim import case as cases
    from chaos.sim.jobs import run_cases
    from chaos.sim.told import Told

    sizes = (nodes, data_shards, clients)
    if case is not None:
        given: Iterable[Case] = [cases.read(case)]
    else:
        wanted = (
            _options(each, minutes=minutes, faults=faults, workload=workload, sizes=sizes)
            for each in _seeds(seed, seeds, endless=bool(budget))
        )
        given = (cases.Case(each, bug) for each in wanted)
    told = Told(str(case) if case is not None else "", seldom=bool(budget))
    run_cases(_within(given, seconds(budget) if budget else None), jobs, told.tell)
    Output(json).result(told.document(), told.summary())
    raise typer.Exit(told.exit_code())


@app.command("shrink")
def shrink(
    seed: Annotated[int, typer.Argument(help="A seed that fails.", min=0)],
    minutes: Minutes = 1.0,
    faults: Faults = "",
    workload: Workload = "kv",
    nodes: Nodes = 0,
    data_shards: Shards = 0,
    clients: Clients = CLIENTS,
    out: Annotated[Path | None, typer.Option(help="Where the case goes; build/sim/case-SEED.json by default.")] = None,
    tries: Annotated[int, typer.Option(help="Runs at most.", min=1)] = 400,
    bug: Bug = "",
    json: Json = False,
) -> None:
    """Cut a failing seed down to the faults, the time and the clients without which it does not fail the same way.

    Exit code 0: a case was written; 64: the seed ends ok with these options.
    """
    from chaos.sim import case as cases
    from chaos.sim.shrink import NothingToShrink, Shrinker

    sizes = (nodes, data_shards, clients)
    options = _options(seed, minutes=minutes, faults=faults, workload=workload, sizes=sizes)
    shrinker = Shrinker(cases.Case(options, bug), note, tries)
    try:
        found = shrinker.run()
    except NothingToShrink:
        fail(Exit.USAGE, f"seed {seed} ends ok: there is nothing to shrink")
    path = out or Path("build/sim") / f"case-{seed}.json"
    cases.write(found, path)
    Output(json).result(cases.document(found, path, shrinker.tries), cases.tell(found, path))


@app.command("bench")
def bench(
    seeds: Annotated[str, typer.Option(help="Such as 1..8, which has one of every taste.")] = "1..8",
    minutes: Minutes = 0.5,
    out: Annotated[Path, typer.Option(help="Directory for the report; made if missing.", file_okay=False)] = Path(
        "build/bench"
    ),
    json: Json = False,
) -> None:
    """Virtual seconds for each second of CPU, with five nodes, three data shards and eight clients, all oracles on.

    Exit code 0: every seed ended ok; 1: one did not, so that the figure says nothing.
    """
    from chaos.sim.bench import measure, report

    _check_minutes(minutes)
    measured = measure(list(_seeds(None, seeds, endless=False)), minutes, note)
    document, text, written = report(measured, out)
    note(f"bench: written {', '.join(map(str, written))}")
    Output(json).result(document, text)
    if bad := [each.result for each in measured if each.result.verdict != "ok"]:
        fail(Exit.FAILED, f"seed {bad[0].seed} ended with {bad[0].verdict}")


def _seeds(seed: int | None, seeds: str, *, endless: bool) -> Iterable[int]:
    if not seeds:
        first = seed if seed is not None else secrets.randbelow(SEEDS_MAX)
        if endless:
            note(f"seeds from {first} on")
        return range(first, first + (SEEDS_MAX if endless else 1))
    matched = re.fullmatch(r"(\d+)\.\.(\d+)", seeds)
    if matched is None or seed is not None:
        raise invalid("seeds", f"{seeds!r} is not like 1..40, or --seed is given too")
    first, last = int(matched[1]), int(matched[2])
    if not first <= last < first + SEEDS_MAX:
        raise invalid("seeds", f"{seeds}: there must be 1 to {SEEDS_MAX}")
    return range(first, last + 1)


def _options(seed: int, *, minutes: float, faults: str, workload: str, sizes: tuple[int, int, int]) -> Options:
    """`sizes`: nodes, data shards, clients."""
    from chaos.sim.run import WORKLOADS, Options
    from chaos.sim.schedule import GROUPS, KNOWN, kinds_in, kinds_of

    if workload not in WORKLOADS:
        raise invalid("workload", f"{workload!r}, must be one of {', '.join(WORKLOADS)}")
    _check_minutes(minutes)
    kinds = kinds_in(faults.split(",")) if faults else kinds_of(seed)
    if unknown := [kind for kind in kinds if kind not in KNOWN]:
        raise invalid("faults", f"{unknown[0]!r}, must be some of {', '.join((*GROUPS, *KNOWN))}")
    nodes, shards, clients = sizes
    return Options(
        seed,
        duration_s=minutes * 60,
        nodes=nodes,
        shards=shards,
        clients=clients,
        kinds=kinds,
        workload=workload,
    )


def _check_minutes(minutes: float) -> None:
    if not 0.05 <= minutes <= MINUTES_MAX:
        raise invalid("minutes", f"{minutes:g}, must be 0.05 to {MINUTES_MAX:g}")


def _within(cases: Iterable[Case], budget_s: float | None) -> Iterator[Case]:
    """As many as can be begun in the time; at least one."""
    started = time.monotonic()
    for each in cases:
        yield each
        if budget_s is not None and time.monotonic() - started >= budget_s:
            return
