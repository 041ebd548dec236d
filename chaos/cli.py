"""`tenfold chaos`: run an experiment, judge a history again, or only inject faults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from client.cli.interrupts import until_signalled
from client.cli.output import Exit, Output, fail, note, run_command
from cluster.errors import invalid

if TYPE_CHECKING:
    from chaos.experiment import Kind

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
Replicas = Annotated[int, typer.Option(help="Replicas of each shard.")]
Shards = Annotated[int, typer.Option(help="How many shards.")]
Rounds = Annotated[int, typer.Option(help="So many rounds, whatever the duration.", min=0)]
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
    replicas: Replicas = 3,
    shards: Shards = 12,
    json: Json = False,
) -> None:
    """Kill nodes under load and prove that nothing acknowledged was lost.

    Exit code 0: verdict ok; 1: a violation; 2: undecided; 3: the cluster never healed; 4: the run itself crashed.
    """
    _run("kill", nodes, replicas, shards, duration, seed, out, json)


@run_app.command("members")
def run_members(
    nodes: Annotated[int, typer.Option(help="How many nodes at first, and at the end.")] = 3,
    duration: Annotated[str, typer.Option(help="Rounds begin for so long, such as 60s; one at least.")] = "60s",
    rounds: Rounds = 0,
    seed: Seed = None,
    out: Out = None,
    replicas: Replicas = 3,
    shards: Shards = 12,
    json: Json = False,
) -> None:
    """Nodes join, die for good and are drained under load, again and again; nothing acknowledged may be lost.

    A round: two nodes join and get their share; one is killed, its folder removed, and its replicas are rebuilt elsewhere; another is
    drained; both leave. Exit codes as of `chaos run kill`.
    """
    _run("members", nodes, replicas, shards, duration, seed, out, json, rounds)


@run_app.command("rolling")
def run_rolling(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    duration: Annotated[str, typer.Option(help="Rounds begin for so long, such as 60s; one at least.")] = "60s",
    rounds: Rounds = 0,
    seed: Seed = None,
    out: Out = None,
    replicas: Replicas = 3,
    shards: Shards = 12,
    json: Json = False,
) -> None:
    """Restart every node, one after the other, under load; no operation may fail, and no outcome be unknown.

    Exit codes as of `chaos run kill`, and 1 also if an operation failed, 2 if an outcome is unknown.
    """
    _run("rolling", nodes, replicas, shards, duration, seed, out, json, rounds)


@run_app.command("lock")
def run_lock(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 5,
    duration: Duration = "60s",
    seed: Seed = None,
    out: Out = None,
    replicas: Replicas = 3,
    shards: Shards = 12,
    fencing: Annotated[
        bool, typer.Option(help="Without it the store takes any token: then double writes must show.")
    ] = True,
    json: Json = False,
) -> None:
    """Kill and pause nodes and holders of locks; no two may hold at once, and no stale write may be accepted.

    Exit codes as of `chaos run kill`.
    """
    _run("lock", nodes, replicas, shards, duration, seed, out, json, fencing=fencing)


def _run(
    kind: Kind,
    nodes: int,
    replicas: int,
    shards: int,
    duration: str,
    seed: int | None,
    out: Path | None,
    json: bool,
    rounds: int = 0,
    fencing: bool = True,
) -> NoReturn:
    shape = (nodes, replicas, shards)
    work = _experiment(kind, shape, duration, rounds, seed, out, Output(json), fencing)
    raise typer.Exit(run_command(until_signalled(work, UNDOING)))


async def _experiment(
    kind: Kind,
    shape: tuple[int, int, int],
    duration: str,
    rounds: int,
    seed: int | None,
    out: Path | None,
    output: Output,
    fencing: bool,
) -> int:
    from chaos import experiment
    from cluster.local.cluster_file import check_settings

    check_settings(*shape, [])
    chosen = seed if seed is not None else experiment.draw_seed()
    options = experiment.Options(*shape, seconds(duration), chosen, rounds, fencing)
    directory = experiment.run_directory(out, f"{kind}-{chosen}")
    outcome = await experiment.run(kind, options, directory, note)
    judgement = outcome.judgement
    output.result(experiment.document(judgement), experiment.summary(judgement, directory / experiment.REPORT))
    code = experiment.exit_code(judgement)
    if outcome.never_healed:
        note(f"error: never healed: {outcome.never_healed}; the cluster's files are in {directory / 'cluster'}")
        return Exit.NEVER_HEALED if code != Exit.FAILED else code
    result = judgement.result
    if kind == "rolling" and (result.failed or result.unknown):
        note(f"error: {result.failed} operations failed and {result.unknown} outcomes are unknown; none should be")
        return code if code != Exit.OK else Exit.FAILED if result.failed else Exit.UNKNOWN
    return code


@app.command()
def check(
    history: Annotated[Path, typer.Argument(help="The history.jsonl of a run.")],
    json: Json = False,
) -> None:
    """Judge an old history again: the same result, the same exit codes."""
    code = run_command(_check(history, Output(json)))
    raise typer.Exit(code)


async def _check(path: Path, output: Output) -> int:
    from chaos import experiment
    from chaos.history import HistoryError, read

    try:
        judgement = experiment.judge_any(read(path), path)
    except OSError as error:
        fail(Exit.USAGE, f"{path}: {error.strerror}")
    except HistoryError as error:
        fail(Exit.USAGE, f"{path}: {error}")
    output.result(experiment.document(judgement), experiment.summary(judgement))
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
    from chaos.nemesis.steps import NeverHealed
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
