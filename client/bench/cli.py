"""`tenfold bench`: how fast the cluster is on this host, and whether the ratios that it promises hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from client.bench import move, peers, replication
from client.bench.report import machine, plot, write
from client.cli.output import Exit, Output, fail, note, render_table, run_command

app = typer.Typer(help="Benchmarks on clusters of their own, on this host.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Out = Annotated[Path, typer.Option("--out", help="Directory for the report; made if missing.", file_okay=False)]
Quick = Annotated[bool, typer.Option("--quick", help="Short windows: to see it run, not to quote it.")]


@app.command("replication")
def replication_command(json_wanted: Json = False, out: Out = Path("build/bench"), quick: Quick = False) -> None:
    """Replication factor 1, 3, 5 by callers and batch size, and reads by consistency. Under ten minutes."""
    run_command(_replication(Output(json_wanted), out, replication.QUICK if quick else replication.FULL))


async def _replication(output: Output, out: Path, plan: replication.Plan) -> None:
    rows = await replication.run(plan)
    document = {"benchmark": "replication", "machine": machine(), "seconds_per_cell": plan.seconds, "cells": rows}
    text = render_table(replication.COLUMNS, replication.table_rows(rows))
    written = write(out, "replication", document, text)
    plot(out / "replication.svg", rows)
    note(f"bench: written {', '.join(map(str, [*written, out / 'replication.svg']))}")
    output.result(document, text)
    if dead := [each for each in rows if not each["operations"]]:
        fail(
            Exit.FAILED,
            f"{len(dead)} cells had no successful operation, first {dead[0]['work']}: {dead[0]['failures']}",
        )


@app.command("peers")
def peers_command(
    json_wanted: Json = False,
    out: Out = Path("build/bench"),
    quick: Quick = False,
    memory: Annotated[bool, typer.Option("--memory", help="Also load a million keys and weigh the nodes.")] = False,
    only: Annotated[str, typer.Option("--only", help="Only this part: batches, singles, idle or memory.")] = "",
) -> None:
    """The promised ratios against the log alone, etcd and a plain client, interleaved; idle CPU; memory."""
    parts = [only] if only else ["batches", "singles", "idle", *(["memory"] if memory else [])]
    if unknown := [each for each in parts if each not in ("batches", "singles", "idle", "memory")]:
        raise typer.BadParameter(f"{unknown[0]!r} is not a part", param_hint="--only")
    run_command(_peers(Output(json_wanted), out, parts, quick))


async def _peers(output: Output, out: Path, parts: list[str], quick: bool) -> None:
    rounds, seconds = (2, 1.0) if quick else (5, 4.0)
    findings: list[peers.Finding] = []
    if "batches" in parts:
        findings += await peers.batches(rounds, seconds)
    if "singles" in parts:
        findings += await peers.singles(rounds, seconds)
    if "idle" in parts:
        findings.append(await peers.idle(3.0 if quick else 10.0))
    if "memory" in parts:
        findings.append(await peers.memory())
    document: dict[str, Any] = {
        "benchmark": "peers",
        "machine": machine(),
        "findings": [each.document() for each in findings],
    }
    text = render_table(peers.COLUMNS, peers.table_rows(findings))
    written = write(out, "peers", document, text)
    note(f"bench: written {', '.join(map(str, written))}")
    output.result(document, text)
    if missed := [each.name for each in findings if each.met is False]:
        fail(Exit.FAILED, f"not met: {'; '.join(missed)}")


@app.command("move")
def move_command(json_wanted: Json = False, out: Out = Path("build/bench"), quick: Quick = False) -> None:
    """A fourth node joins three under load: p99 while its share of the replicas moves, against the quiet one. A minute or two."""
    run_command(_move(Output(json_wanted), out, move.QUICK if quick else move.FULL))


async def _move(output: Output, out: Path, plan: move.Plan) -> None:
    found = await move.run(plan)
    document = {
        "benchmark": "move",
        "machine": machine(),
        "keys": plan.keys,
        "callers": plan.callers,
        "rate_per_s": plan.rate_per_s,
        "moved": found.moved,
        "replicas": found.replicas,
        "phases": found.phases,
        "findings": [each.document() for each in found.findings],
    }
    phases = render_table(move.COLUMNS, move.table_rows(found.phases))
    text = f"{phases}\n\n{render_table(peers.COLUMNS, peers.table_rows(found.findings))}"
    written = write(out, "move", document, text)
    note(f"bench: written {', '.join(map(str, written))}")
    output.result(document, text)
    if failed := sum(each["failures"] for each in found.phases):
        fail(Exit.FAILED, f"{failed} operations failed")
    if missed := [each.name for each in found.findings if each.met is not True]:
        fail(Exit.FAILED, f"not met: {'; '.join(missed)}")
