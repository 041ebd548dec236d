"""The commands that start, show, break and end a cluster on this host."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.output import CALLERS_MISTAKES, Exit, Output, error_name, fail, note, run_command
from cluster.errors import Code, TenfoldError, invalid

if TYPE_CHECKING:
    from cluster.local.local_cluster import LocalCluster

DEFAULT_DIRECTORY = Path(".tenfold")
NODES, REPLICAS, SHARDS = 5, 3, 12

app = typer.Typer()

Dir = Annotated[Path, typer.Option("--dir", help="The cluster's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")]
Nodes = Annotated[list[str] | None, typer.Argument(metavar="NODE", help="Names of nodes, as `status` shows them.")]
All = Annotated[bool, typer.Option("--all", help="Every node.")]


async def _decided(work: Coroutine[Any, Any, None]) -> None:
    """A node that does not run or come up is a failed operation here, not an unknown outcome as over the wire; so is a
    file that cannot be read or written."""
    try:
        await work
    except TenfoldError as error:
        if error.code in CALLERS_MISTAKES:
            raise
        fail(Exit.FAILED, f"{error_name(error.code)}: {error.message}")
    except OSError as error:
        if error.filename is None:
            raise
        fail(Exit.FAILED, f"{error.filename}: {error.strerror}")


@app.command()
def up(
    nodes: Annotated[int | None, typer.Option(help=f"How many nodes; {NODES} by default.")] = None,
    replicas: Annotated[int | None, typer.Option(help=f"Replicas of each shard; {REPLICAS} by default.")] = None,
    shards: Annotated[int | None, typer.Option(help=f"Shards, fixed at creation; {SHARDS} by default.")] = None,
    directory: Dir = DEFAULT_DIRECTORY,
    zones: Annotated[str | None, typer.Option(help="Zones, by commas, dealt out to the nodes in turn.")] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay; the nodes end with this command.")] = False,
    base_port: Annotated[
        int | None, typer.Option(help="The first node's port, the others follow.", min=1024, max=65_000)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until every shard has a leader.", min=1)] = 60.0,
    json: Json = False,
) -> None:
    """Start a cluster, making it if the directory holds none; returns when every shard has a leader.

    A directory that holds a cluster is started again with its own settings. The nodes run on until `down`.
    """
    given = {"nodes": nodes, "replicas": replicas, "shards": shards, "zones": zones}
    from client.cli.interrupts import until_signalled

    work = _decided(_up(given, directory, foreground, base_port, timeout, Output(json)))
    run_command(until_signalled(work, "interrupted; nodes that do not listen yet are ended"))


async def _up(
    given: dict[str, Any], directory: Path, foreground: bool, base_port: int | None, timeout_s: float, output: Output
) -> None:
    from client.cli.foreground import catch_interrupts, stay
    from cluster.local.local_cluster import LocalCluster

    zones = [zone.strip() for zone in given["zones"].split(",")] if given["zones"] is not None else []
    settings = {"nodes": NODES, "replicas": REPLICAS, "shards": SHARDS}
    settings |= {name: given[name] for name in settings if given[name] is not None}
    cluster = LocalCluster(**settings, dir=directory, zones=zones, die_with_parent=foreground, base_port=base_port)
    try:
        if cluster.layout.exists():
            _refuse_other_settings(cluster, given, zones)
        try:
            started = await cluster.start()
        finally:
            _note_lost(cluster)
        total = len(cluster.nodes)
        note(f"{len(started)} of {total} nodes started, {total - len(started)} ran already")
        if not foreground:
            _show_up(
                cluster, started, await _wait_ready(cluster, timeout_s, "the nodes run on, see `tenfold down`"), output
            )
            return
        try:
            leading = await _wait_ready(cluster, timeout_s, "the nodes were stopped")
            asked = catch_interrupts()
            _show_up(cluster, started, leading, output)
            await stay(cluster, asked)
        finally:
            if cluster.layout.exists():
                await cluster.down()
    finally:
        await cluster.close()


def _show_up(cluster: LocalCluster, started: list[str], leading: dict[int, str], output: Output) -> None:
    born = cluster.cluster
    document = {
        "dir": str(cluster.layout.root),
        "cluster_id": born.cluster_id,
        "started": started,
        "shards": born.shards,
        "replication_factor": born.replication_factor,
        "nodes": cluster.addresses,
        "leaders": {str(shard): node for shard, node in sorted(leading.items())},
    }
    output.result(
        document, f"{len(born.nodes)} nodes are up in {cluster.layout.root}; {born.shards} shards and meta have leaders"
    )


def _refuse_other_settings(cluster: LocalCluster, given: dict[str, Any], zones: list[str]) -> None:
    """A cluster keeps the settings it was born with; who asks for others by name must learn that."""
    born = cluster.cluster
    dealt = [zones[position % len(zones)] if zones else "" for position in range(len(born.nodes))]
    has = {
        "nodes": (len(born.nodes), given["nodes"]),
        "replicas": (born.replication_factor, given["replicas"]),
        "shards": (born.shards, given["shards"]),
        "zones": ([entry.zone for entry in born.nodes], dealt if given["zones"] is not None else None),
    }
    for name, (is_now, wanted) in has.items():
        if wanted is not None and wanted != is_now:
            shown = ",".join(is_now) or "none" if isinstance(is_now, list) else is_now
            raise invalid(
                name, f"the cluster in {cluster.layout.root} was made with --{name} {shown}; leave --{name} out"
            )


async def _wait_ready(cluster: LocalCluster, timeout_s: float, after: str) -> dict[int, str]:
    told = -1

    def progress(led: int, wanted: int) -> None:
        nonlocal told
        if led != told:
            told = led
            note(f"{led} of {wanted} shards (meta counted) have a leader")

    try:
        return await cluster.wait_ready(timeout_s, progress)
    except TenfoldError as error:
        if error.code is not Code.DEADLINE_EXCEEDED:
            raise
        fail(Exit.FAILED, f"{error.message}; {after}")


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove the data as well.")] = False,
    directory: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Stop all nodes. The data stays, unless --purge."""
    run_command(_decided(_down(directory, purge, Output(json))))


async def _down(directory: Path, purge: bool, output: Output) -> None:
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    stopped = sorted(cluster.launcher.processes(cluster.nodes))
    killed = await cluster.down()
    _note_killed(killed)
    left = await cluster.purge() if purge else []
    document = {"dir": str(cluster.layout.root), "stopped": stopped, "killed": killed, "purged": purge, "left": left}
    text = f"{len(stopped)} nodes stopped" + (", data removed" if purge else "")
    output.result(document, f"{text}; not the cluster's, so kept: {', '.join(left)}" if left else text)


@app.command()
def status(directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Show the nodes: whether they run, what they lead, what they use."""
    run_command(_decided(_status(directory, Output(json))))


async def _status(directory: Path, output: Output) -> None:
    from client.cli.cluster_view import STATUS_COLUMNS, node_document, status_row
    from cluster.local.ask import leaders
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    try:
        statuses = await cluster.status()
    finally:
        await cluster.close()
    born = cluster.cluster
    led = len(leaders(each.reply for each in statuses if each.reply is not None))
    document = {
        "dir": str(cluster.layout.root),
        "cluster_id": born.cluster_id,
        "shards": born.shards,
        "replication_factor": born.replication_factor,
        "led": led,
        "ready": led == born.shards + 1,
        "nodes": [node_document(each) for each in statuses],
    }
    below = f"{led} of {born.shards + 1} shards (meta counted) have a leader"
    output.table(document, STATUS_COLUMNS, [status_row(each) for each in statuses], below)


@app.command()
def ring(directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Show the shards: arc, leader, replicas, applied index, lag. A node in (parentheses) does not answer."""
    run_command(_decided(_ring(directory, Output(json))))


async def _ring(directory: Path, output: Output) -> None:
    from client.cli.cluster_view import RING_COLUMNS, ring_documents, ring_row
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    try:
        shard_map = await cluster.shard_map()
        documents = ring_documents(shard_map, await cluster.status())
    finally:
        await cluster.close()
    output.table({"epoch": shard_map.epoch, "shards": documents}, RING_COLUMNS, [ring_row(each) for each in documents])


@app.command()
def kill(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Kill nodes with SIGKILL: no goodbye, as in a crash."""
    run_command(_decided(_act("killed", nodes, every, directory, Output(json))))


@app.command()
def stop(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Stop nodes cleanly: they hand over their leaderships and finish what is in flight."""
    run_command(_decided(_act("stopped", nodes, every, directory, Output(json))))


@app.command()
def pause(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Freeze nodes with SIGSTOP: they keep their connections and answer nothing."""
    run_command(_decided(_act("paused", nodes, every, directory, Output(json))))


@app.command()
def resume(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Let paused nodes go on."""
    run_command(_decided(_act("resumed", nodes, every, directory, Output(json))))


@app.command()
def restart(nodes: Nodes = None, every: All = False, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Start nodes that are down, stop and start those that run; returns when they listen."""
    run_command(_decided(_act("restarted", nodes, every, directory, Output(json))))


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
        _note_lost(cluster)
    document: dict[str, Any] = {"action": done, "nodes": chosen}
    if special is not None:
        document["running" if done == "resumed" else "killed"] = special
    if done != "resumed":
        _note_killed(special or [])
        output.result(document, f"{done} {', '.join(chosen)}")
        return
    for node in special or []:
        note(f"{node} was not paused, it was running")
    resumed = [node for node in chosen if node not in (special or [])]
    output.result(document, f"resumed {', '.join(resumed)}" if resumed else "no node was paused")


def _note_lost(cluster: LocalCluster) -> None:
    for node in cluster.launcher.lost:
        note(f"{node} lost its data: its replicas are quarantined, they neither vote nor serve; see `tenfold status`")


def _note_killed(nodes: list[str]) -> None:
    for node in nodes:
        note(f"{node} did not stop in time and was killed")
