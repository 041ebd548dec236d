"""The commands that help to find out what is wrong: the nodes' logs, and the state of this host."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import DEFAULT_DIRECTORY, Dir, Json
from client.cli.output import Exit, Output, fail

if TYPE_CHECKING:
    from cluster.local.layout import Layout

FOLLOW_POLL_S = 0.2

app = typer.Typer()


@app.command()
def logs(
    node: Annotated[str | None, typer.Argument(metavar="[NODE]", help="One node; all without it.")] = None,
    lines: Annotated[int, typer.Option("-n", help="How many last lines of each node.", min=0)] = 20,
    follow: Annotated[bool, typer.Option("-f", help="Go on with what is written, until interrupted.")] = False,
    directory: Dir = DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Show the last lines of the nodes' logs, which are JSON lines."""
    from cluster.local.layout import Layout

    if follow and json:
        raise typer.BadParameter("a log that goes on is not one JSON document", param_hint="--json")
    layout = Layout(directory)
    cluster = layout.read()
    chosen = [cluster.entry(node).node] if node is not None else cluster.names
    starts = {each: layout.log_size(each) for each in chosen}
    last = {each: layout.last_lines(each, lines) for each in chosen}
    output = Output(json)
    if not follow:
        output.result(last, "\n".join(_marked(each, line, chosen) for each in chosen for line in last[each]))
        return
    for each in chosen:
        for line in last[each]:
            print(_marked(each, line, chosen))
    _follow(layout, chosen, starts)


def _marked(node: str, line: str, chosen: list[str]) -> str:
    return line if len(chosen) == 1 else f"{node} {line}"


def _follow(layout: Layout, chosen: list[str], offsets: dict[str, int]) -> None:
    """An interrupt is its normal end."""
    try:
        while layout.exists():
            for node in chosen:
                lines, offsets[node] = layout.lines_from(node, offsets[node])
                for line in lines:
                    print(_marked(node, line, chosen))
            sys.stdout.flush()
            time.sleep(FOLLOW_POLL_S)
    except KeyboardInterrupt:
        return


@app.command()
def doctor(directory: Dir = DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Check this host: Python, packages, ports, disk, fsync speed, and which faults can be injected."""
    from cluster.local.doctor import FAIL, examine

    checks = examine(Path(directory))
    failed = [check.name for check in checks if check.state == FAIL]
    document = {"ok": not failed, "checks": [check._asdict() for check in checks]}
    Output(json).table(document, ("check", "state", "detail"), checks)
    if failed:
        fail(Exit.FAILED, f"a cluster will not run well here: {', '.join(failed)}")
