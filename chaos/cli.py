"""`tenfold chaos`: run an experiment, judge a history again, or only inject faults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from client.cli.interrupts import until_signalled
from client.cli.output import Exit, Output, fail, note, run_command
from cluster.errors import invalid

UNDOING = "interrupted; undoing what was done to the cluster"
SHORTEST_S, LONGEST_S = 1.0, 86_400.0
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}

app = typer.Typer(no_args_is_help=True)
run_app = typer.Typer(no_args_is_help=True)
nemesis_app = typer.Typer(no_args_is_help=True)
app.add_typer(run_app, name="run", help="A cluster of its own, a load, faults, healing, a verdict.")
app.add_typer(nemesis_app, name="nemesis", help="Only faults, into a cluster that `tenfold up` started.")

Duration = Annotated[str, typer.Option(help="How long, such as 60s, 500ms or 5m.")]
Seed = Annotated[int | None, typer.Option(help="Gives the same load and plan again; drawn if not given.", min=0)]
Out = Annotated[Path | None, typer.Option(help="Directory for what the run leaves; build/chaos/… by default.")]
Json = Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")]


def seconds(duration: str) -> float:
    """The seconds a duration says. TenfoldError InvalidArgument."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", duration.strip())
    if matched is None:
        raise invalid("duration", f"{duration!r} is not a number with one of the units ms, s, m, h")
    found = float(matched[1]) * UNITS_S[matched[2]]
    if not SHORTEST_S <= found <= LONGEST_S:
        raise invalid("duration", f"{duration} is not between {SHORTEST_S:g}s and {LONGEST_S:g}s")
    return found


@run_app.command("kill")
def run_kill(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 5,
    duration: Duration = "60s",
    seed: Seed = None,
    out: Out = None,
    replicas: Annotated[int, typer.Option(help="Replicas of each shard.")] = 3,
    shards: Annotated[int, typer.Option(help="How many shards.")] = 12,
    json: Json = False,
) -> None:
    """Kill nodes under load and prove that nothing acknowledged was lost.

    Exit code 0: verdict ok; 1: a violation; 2: undecided; 3: the cluster never healed; 4: the run itself crashed.
    """
    code = run_command(until_signalled(_run_kill(nodes, replicas, shards, duration, seed, out, Output(json)), UNDOING))
    raise typer.Exit(code)


async def _run_kill(
    nodes: int, replicas: int, shards: int, duration: str, seed: int | None, out: Path | None, output: Output
) -> int:
    from chaos import experiment, report
    from cluster.local.cluster_file import check_settings

    check_settings(nodes, replicas, shards, [])
    chosen = seed if seed is not None else experiment.draw_seed()
    options = experiment.Options(nodes, replicas, shards, seconds(duration), chosen)
    directory = experiment.run_directory(out, f"kill-{chosen}")
    outcome = await experiment.run_kill(options, directory, note)
    document = experiment.document(outcome.judgement)
    output.result(document, report.summary(outcome.judgement, directory / experiment.REPORT))
    if outcome.never_healed:
        note(f"error: never healed: {outcome.never_healed}; the cluster's files are in {directory / 'cluster'}")
    code = experiment.exit_code(outcome.judgement)
    return Exit.NEVER_HEALED if outcome.never_healed and code != Exit.FAILED else code


@app.command()
def check(
    history: Annotated[Path, typer.Argument(help="The history.jsonl of a run.")],
    json: Json = False,
) -> None:
    """Judge an old history again: the same result, the same exit codes."""
    code = run_command(_check(history, Output(json)))
    raise typer.Exit(code)


async def _check(path: Path, output: Output) -> int:
    from chaos import experiment, report
    from chaos.history import HistoryError, read
    from chaos.judge import judge

    try:
        judgement = judge(read(path), path)
    except OSError as error:
        fail(Exit.USAGE, f"{path}: {error.strerror}")
    except HistoryError as error:
        fail(Exit.USAGE, f"{path}: {error}")
    output.result(experiment.document(judgement), report.summary(judgement))
    return experiment.exit_code(judgement)


@nemesis_app.command("kill")
def nemesis_kill(
    duration: Duration = "60s",
    seed: Seed = None,
    directory: Annotated[Path, typer.Option("--dir", help="The cluster's directory.")] = Path(".tenfold"),
    out: Out = None,
    json: Json = False,
) -> None:
    """Kill and restart nodes of a running cluster; never a majority, and every node runs again at the end."""
    code = run_command(until_signalled(_nemesis_kill(directory, duration, seed, out, Output(json)), UNDOING))
    raise typer.Exit(code)


async def _nemesis_kill(directory: Path, duration: str, seed: int | None, out: Path | None, output: Output) -> int:
    from chaos import experiment
    from chaos.nemesis.kill import NeverHealed
    from cluster.local.local_cluster import LocalCluster

    duration_s, chosen = seconds(duration), seed if seed is not None else experiment.draw_seed()
    cluster = LocalCluster.at(directory)
    try:
        kept = experiment.run_directory(out, f"nemesis-{chosen}")
        injected = await experiment.inject_kills(cluster, duration_s, chosen, kept, note)
    except NeverHealed as error:
        fail(Exit.NEVER_HEALED, f"never healed: {error}")
    finally:
        await cluster.close()
    document = {"faults": injected.kills, "healed": True, "seed": chosen, "history": str(injected.history)}
    output.result(document, f"{injected.kills} kills, every node is back; seed {chosen}; {injected.history}")
    return Exit.OK
