"""`tenfold rebalance`: replicas go where the ring wants them; the plan first, a bar while they move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.interrupts import until_signalled
from client.cli.options import DEFAULT_DIRECTORY, Dir, Json, decided
from client.cli.output import Output, run_command

if TYPE_CHECKING:
    from cluster.local.local_cluster import LocalCluster

app = typer.Typer()


@app.command()
def rebalance(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")] = False,
    directory: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Move replicas until every node holds its share; clients go on. Returns when nothing is left to move."""
    told = "interrupted; the cluster goes on with the moves, see `tenfold status`"
    run_command(until_signalled(decided(_rebalance(dry_run, directory, Output(json))), told))


async def _rebalance(dry_run: bool, directory: Path, output: Output) -> None:
    from client.cli.cluster_view import MOVE_COLUMNS, move_document, move_row
    from cluster.local.local_cluster import LocalCluster

    cluster = LocalCluster.at(directory)
    try:
        if not dry_run:
            moves = await carry_out(cluster)
            output.result({"moved": len(moves), "moves": moves}, f"{len(moves)} replicas moved" if moves else BALANCED)
            return
        planned = await cluster.planned()
    finally:
        await cluster.close()
    share = len(planned.moves) / max(1, planned.replicas)
    document = {
        "moves": [move_document(move) for move in planned.moves],
        "replicas": planned.replicas,
        "share": round(share, 4),
    }
    if not planned.moves:
        output.result(document, BALANCED)
        return
    below = f"{len(planned.moves)} of {planned.replicas} replicas would move ({share:.0%})"
    output.table(document, MOVE_COLUMNS, [move_row(move) for move in planned.moves], below)


BALANCED = "every replica is where it should be"


async def carry_out(cluster: LocalCluster) -> list[dict[str, Any]]:
    """Rebalances with a bar; the moves, as JSON knows them."""
    from client.cli.cluster_view import move_document
    from client.cli.progress import Steps

    with Steps("rebalance", "replicas moved") as steps:
        reply = await cluster.rebalance(steps.tell)
    return [move_document(move) for move in reply.moves]
