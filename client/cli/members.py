"""`tenfold node`: nodes join a running cluster, are emptied, and leave it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.interrupts import until_signalled
from client.cli.options import DEFAULT_DIRECTORY, Dir, Json, decided
from client.cli.output import Exit, Output, error_name, fail, note, run_command
from cluster.errors import Code, TenfoldError

if TYPE_CHECKING:
    from cluster.local.local_cluster import LocalCluster

MOVES_GO_ON = "interrupted; what the cluster was told to move goes on, see `tenfold status`"

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NODE", help="Its name, as `status` shows it.")]


@app.command()
def add(
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 1,
    zones: Annotated[
        str | None, typer.Option("--zone", help="Its zone; several, by commas, are dealt out in turn.")
    ] = None,
    no_rebalance: Annotated[
        bool, typer.Option("--no-rebalance", help="The new nodes stay empty until `rebalance`.")
    ] = False,
    directory: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Start new nodes, let them join, and move their share of the replicas to them."""
    dealt = [zone.strip() for zone in zones.split(",")] if zones is not None else []
    work = decided(_add(count, dealt, not no_rebalance, directory, Output(json)))
    run_command(until_signalled(work, MOVES_GO_ON))


async def _add(count: int, zones: list[str], rebalance: bool, directory: Path, output: Output) -> None:
    from client.cli.moves import carry_out
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    moved: int | None = None
    try:
        added = await cluster.add(count, zones)
        note(f"{', '.join(added)} joined")
        if rebalance:
            moved = len(await carry_out(cluster))
    finally:
        await cluster.close()
    entries = [cluster.cluster.entry(node) for node in added]
    document = {
        "added": [{"node": each.node, "zone": each.zone, "address": cluster.addresses[each.node]} for each in entries],
        "moved": moved,
    }
    empty = f"{'it holds' if len(added) == 1 else 'they hold'} nothing until `tenfold rebalance`"
    told = empty if moved is None else f"{moved} replicas moved"
    output.result(document, f"added {', '.join(added)}; {told}")


@app.command()
def drain(node: Name, directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Move every replica away from a node, which may be down. It goes on running, and can then be removed."""
    run_command(until_signalled(decided(_drain(node, directory, Output(json))), MOVES_GO_ON))


async def _drain(node: str, directory: Path, output: Output) -> None:
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    try:
        moved = await _drained(cluster, node)
    finally:
        await cluster.close()
    output.result({"drained": node, "moved": moved}, f"{node} holds nothing any more, {moved} replicas moved")


async def _drained(cluster: LocalCluster, node: str) -> int:
    from client.cli.progress import Steps

    with Steps(f"drain {node}", "replicas moved") as steps:
        return await cluster.drain(node, steps.tell)


@app.command()
def remove(
    node: Name,
    drain: Annotated[bool, typer.Option("--drain", help="Drain it first.")] = False,
    directory: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Take a node that holds nothing out of the cluster, with its data; its name is never given again.

    The replicas of a node that is down for good are rebuilt elsewhere after a while (`up --repair-after`), or by --drain at once.
    """
    run_command(until_signalled(decided(_remove(node, drain, directory, Output(json))), MOVES_GO_ON))


async def _remove(node: str, drain: bool, directory: Path, output: Output) -> None:
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    moved = 0
    try:
        if drain:
            moved = await _drained(cluster, node)
        await cluster.remove(node)
    except TenfoldError as error:
        if error.code is not Code.MEMBER_BUSY:
            raise
        asked = f"`tenfold node drain {node}` moves them away, `tenfold node remove {node} --drain` does both"
        fail(Exit.FAILED, f"{error_name(error.code)}: {error.message}; {asked}")
    finally:
        await cluster.close()
    output.result({"removed": node, "moved": moved}, f"{node} is removed, its data too")


@app.command("list")
def list_members(directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Show the members as the cluster knows them: state, replicas, and the names of those that were removed."""
    run_command(decided(_list(directory, Output(json))))


async def _list(directory: Path, output: Output) -> None:
    from client.cli.cluster_view import member_states
    from cluster.local.local_cluster import LocalCluster
    from cluster.ring.shard_map import shards_on

    cluster = LocalCluster.at(directory)
    try:
        shard_map = await cluster.shard_map()
    finally:
        await cluster.close()
    states = member_states(shard_map)
    members: list[dict[str, Any]] = [
        {
            "node": each.node,
            "zone": each.zone,
            "address": each.address,
            "state": states[each.node],
            "replicas": shards_on(shard_map, each.node),
        }
        for each in shard_map.members
    ]
    document = {"epoch": shard_map.epoch, "members": members, "removed": list(shard_map.removed)}
    rows = [
        [each["node"], each["zone"] or "-", each["address"], each["state"], len(each["replicas"])] for each in members
    ]
    below = f"removed: {', '.join(shard_map.removed)}" if shard_map.removed else ""
    output.table(document, ("node", "zone", "address", "state", "replicas"), rows, below)
