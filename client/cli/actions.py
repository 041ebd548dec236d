"""The commands that break nodes and bring them back: kill, stop, pause, resume, restart."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import DEFAULT_DIRECTORY, All, Dir, Json, Nodes, decided
from client.cli.output import Output, note, run_command

if TYPE_CHECKING:
    from cluster.local.local_cluster import LocalCluster

app = typer.Typer()


@app.command()
def kill(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Kill nodes with SIGKILL: no goodbye, as in a crash."""
    run_command(decided(_act("killed", nodes, every, directory, Output(json))))


@app.command()
def stop(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Stop nodes cleanly: they hand over their leaderships and finish what is in flight."""
    run_command(decided(_act("stopped", nodes, every, directory, Output(json))))


@app.command()
def pause(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Freeze nodes with SIGSTOP: they keep their connections and answer nothing."""
    run_command(decided(_act("paused", nodes, every, directory, Output(json))))


@app.command()
def resume(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Let paused nodes go on."""
    run_command(decided(_act("resumed", nodes, every, directory, Output(json))))


@app.command()
def restart(
    nodes: Nodes = None,
    every: All = False,
    rolling: Annotated[
        bool,
        typer.Option("--rolling", help="One after the other, each only when the cluster is whole; all by default."),
    ] = False,
    directory: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Start nodes that are down, stop and start those that run; returns when they listen.

    With --rolling the cluster goes on serving: a node is stopped only when every node answers, every shard has a leader and every
    replica has caught up; returns when that is so again.
    """
    if not rolling:
        run_command(decided(_act("restarted", nodes, every, directory, Output(json))))
        return
    if nodes and every:
        raise typer.BadParameter("give the names of nodes, or --all", param_hint="NODE")
    from client.cli.interrupts import until_signalled

    work = decided(_rolling(nodes or [], directory, Output(json)))
    run_command(until_signalled(work, "interrupted; no further node is stopped"))


async def _rolling(nodes: list[str], directory: Path, output: Output) -> None:
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    try:
        done = await cluster.rolling_restart(*nodes, tell=note)
    finally:
        note_lost(cluster)
        await cluster.close()
    note_killed(done.killed)
    document = {"restarted": done.nodes, "killed": done.killed}
    output.result(document, f"restarted {', '.join(done.nodes)}, one after the other")


async def _act(done: str, nodes: list[str] | None, every: bool, directory: Path, output: Output) -> None:
    from cluster.local.launcher import names
    from cluster.local.local_cluster import LocalCluster

    if bool(nodes) == every:
        raise typer.BadParameter("give the names of nodes, or --all", param_hint="NODE")
    cluster = LocalCluster.at(directory)
    chosen = cluster.nodes if every else names(cluster.cluster, nodes or [])
    actions: dict[str, Callable[..., Coroutine[Any, Any, list[str] | None]]] = {
        "killed": cluster.kill,
        "stopped": cluster.stop,
        "paused": cluster.pause,
        "resumed": cluster.resume,
        "restarted": cluster.restart,
    }
    if every and done != "restarted":  # --all means all that run, as long as one does
        chosen = list(cluster.launcher.processes(chosen)) or chosen
    try:
        special = await actions[done](*chosen)
    finally:
        note_lost(cluster)
    document: dict[str, Any] = {"action": done, "nodes": chosen}
    if special is not None:
        document["running" if done == "resumed" else "killed"] = special
    if done != "resumed":
        note_killed(special or [])
        output.result(document, f"{done} {', '.join(chosen)}")
        return
    for node in special or []:
        note(f"{node} was not paused, it was running")
    resumed = [node for node in chosen if node not in (special or [])]
    output.result(document, f"resumed {', '.join(resumed)}" if resumed else "no node was paused")


def note_lost(cluster: LocalCluster) -> None:
    for node in cluster.launcher.lost:
        note(f"{node} lost its data: its replicas are quarantined, they neither vote nor serve; see `tenfold status`")


def note_killed(nodes: list[str]) -> None:
    for node in nodes:
        note(f"{node} did not stop in time and was killed")
