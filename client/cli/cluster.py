"""The commands that start, show and end a cluster on this host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.actions import note_killed, note_lost
from client.cli.options import DEFAULT_DIRECTORY, Dir, Json, decided
from client.cli.output import Exit, Output, fail, note, run_command
from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import DEFAULT

if TYPE_CHECKING:
    from cluster.local.local_cluster import LocalCluster
    from proto.gen import node_pb2

NODES, REPLICAS, SHARDS = 5, 3, 12
MOVES_TIMEOUT_S = 1.0

app = typer.Typer()


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
    repair_after: Annotated[
        float | None,
        typer.Option(help="Seconds a node may be away before its replicas are rebuilt elsewhere; 60 by default."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until every shard has a leader.", min=1)] = 60.0,
    json: Json = False,
) -> None:
    """Start a cluster, making it if the directory holds none; returns when every shard has a leader.

    A directory that holds a cluster is started again with its own settings. The nodes run on until `down`.
    """
    given = {"nodes": nodes, "replicas": replicas, "shards": shards, "zones": zones, "repair_after": repair_after}
    from client.cli.interrupts import until_signalled

    work = decided(_up(given, directory, foreground, base_port, timeout, Output(json)))
    run_command(until_signalled(work, "interrupted; nodes that do not listen yet are ended"))


async def _up(
    given: dict[str, Any], directory: Path, foreground: bool, base_port: int | None, timeout_s: float, output: Output
) -> None:
    from client.cli.foreground import catch_interrupts, stay
    from cluster.local.local_cluster import LocalCluster

    zones = [zone.strip() for zone in given["zones"].split(",")] if given["zones"] is not None else []
    settings = {"nodes": NODES, "replicas": REPLICAS, "shards": SHARDS}
    settings |= {name: given[name] for name in settings if given[name] is not None}
    cluster = LocalCluster(
        **settings,
        dir=directory,
        zones=zones,
        die_with_parent=foreground,
        base_port=base_port,
        repair_after_s=given["repair_after"],
    )
    try:
        if cluster.layout.exists():
            _refuse_other_settings(cluster, given, zones)
        try:
            started = await cluster.start()
        finally:
            note_lost(cluster)
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
        "repair_after": (born.repair_after_s or DEFAULT.down_after_ms / 1000, given["repair_after"]),
        "zones": ([entry.zone for entry in born.nodes], dealt if given["zones"] is not None else None),
    }
    for name, (is_now, wanted) in has.items():
        if wanted is not None and wanted != is_now:
            shown = ",".join(is_now) or "none" if isinstance(is_now, list) else f"{is_now:g}"
            option = f"--{name.replace('_', '-')}"
            raise invalid(name, f"the cluster in {cluster.layout.root} has {option} {shown}; leave {option} out")


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
    run_command(decided(_down(directory, purge, Output(json))))


async def _down(directory: Path, purge: bool, output: Output) -> None:
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    stopped = sorted(cluster.launcher.processes(cluster.nodes))
    killed = await cluster.down()
    note_killed(killed)
    left = await cluster.purge() if purge else []
    document = {"dir": str(cluster.layout.root), "stopped": stopped, "killed": killed, "purged": purge, "left": left}
    text = f"{len(stopped)} nodes stopped" + (", data removed" if purge else "")
    output.result(document, f"{text}; not the cluster's, so kept: {', '.join(left)}" if left else text)


@app.command()
def status(directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Show the nodes: whether they run, what they lead, what they use."""
    run_command(decided(_status(directory, Output(json))))


async def _status(directory: Path, output: Output) -> None:
    from client.cli import cluster_view as view
    from cluster.local.ask import leaders
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    try:
        statuses = await cluster.status()
        shard_map = await cluster.shard_map()
        driver = await _moves(cluster)
    finally:
        await cluster.close()
    born = cluster.cluster
    led = len(leaders(each.reply for each in statuses if each.reply is not None))
    members = view.member_states(shard_map)
    document = {
        "dir": str(cluster.layout.root),
        "cluster_id": born.cluster_id,
        "epoch": shard_map.epoch,
        "shards": born.shards,
        "replication_factor": born.replication_factor,
        "led": led,
        "ready": led == born.shards + 1,
        **view.moves_document(driver),
        "nodes": [view.node_document(each, members.get(each.node)) for each in statuses],
    }
    below = [f"{led} of {born.shards + 1} shards (meta counted) have a leader", *view.moves_text(driver)]
    rows = [view.status_row(each, members.get(each.node)) for each in statuses]
    output.table(document, view.STATUS_COLUMNS, rows, "\n".join(below))


async def _moves(cluster: LocalCluster) -> node_pb2.DriverStatusReply | None:
    try:
        return await cluster.driver_status(MOVES_TIMEOUT_S)
    except TenfoldError:  # no leader, or no node: the rest is told all the same
        return None


@app.command()
def ring(directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Show the shards: arc, leader, replicas, applied index, lag.

    +n4 is a learner, -n4 leaves, n4! is quarantined; a node in (parentheses) does not answer.
    """
    run_command(decided(_ring(directory, Output(json))))


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
