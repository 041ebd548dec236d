"""`tenfold lock`: hold names across processes, see who holds what, run a command while holding.

Standard output carries the result only. Exit codes: 0 ok, 1 failed or held by another, 2 some outcome is unknown, 64 usage; `run` ends
with its command's code.
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import DEFAULT_DIRECTORY, Dir, Json
from client.cli.output import Exit, Output, fail, note, run_command

if TYPE_CHECKING:
    from client.client import Client
    from client.lock_view import LockChange, LockInfo

DEADLINE_S = 10.0
GRACE_S = 5.0

app = typer.Typer(no_args_is_help=True)

Deadline = Annotated[float, typer.Option("--deadline", help="Seconds for each request.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]
Ttl = Annotated[float, typer.Option("--ttl", help="Seconds for which it is held if nothing is heard of its holder.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for it; by default not at all.")]
Owner = Annotated[str | None, typer.Option("--owner", help="Who holds it, as others see it.")]


def _client(directory: Path, deadline_s: float) -> Client:
    """Fails at once if no node of the cluster runs: there is nothing to wait for."""
    from client.client import Client
    from cluster.local.launcher import Launcher
    from cluster.local.layout import Layout

    layout = Layout(directory)
    if not Launcher(layout).processes(layout.read().names):
        fail(Exit.FAILED, f"the cluster in {layout.root} is down; `tenfold up --dir {layout.root}` starts it")
    return Client.from_directory(directory, deadline_s=deadline_s)


def _run(work: Coroutine[Any, Any, int]) -> None:
    code = run_command(work)
    if code:
        raise typer.Exit(code)


@app.command()
def acquire(
    name: Name,
    ttl: Ttl,
    wait: Wait = 0.0,
    owner: Owner = None,
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Take a lock and print its fencing token. Nobody keeps it alive: it ends after --ttl, or by `release`."""
    _run(_acquire(name, ttl, wait, owner, directory, deadline, Output(json)))


async def _acquire(
    name: str, ttl: float, wait: float, owner: str | None, directory: Path, deadline_s: float, output: Output
) -> int:
    from client.lock_arguments import How, milliseconds

    async with _client(directory, deadline_s) as client:
        how = How(owner=owner or _this_process())
        held = await client.lock.acquire(name, milliseconds(ttl, "ttl"), milliseconds(wait, "wait"), how=how)
        await held.renew()  # a wait may have used up some of it
        token, attempt = held.token, held.attempts[name]
        held.abandon()
        output.result({"name": name, "token": token, "lease": held.lease, "attempt": attempt}, str(token))
    return 0


def _this_process() -> str:
    import os
    import socket

    return f"{socket.gethostname()[:64]}:{os.getpid()}"


@app.command()
def release(
    name: Name,
    token: Annotated[int, typer.Option("--token", help="As `acquire` printed it.")],
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Give up a lock; prints whether it was held. Of somebody else's lock nothing is given up."""
    _run(_release(name, token, directory, deadline, Output(json)))


async def _release(name: str, token: int, directory: Path, deadline_s: float, output: Output) -> int:
    async with _client(directory, deadline_s) as client:
        released = await client.lock.release_token(name, token)
    output.result({"released": released}, "released" if released else "was not held")
    return 0


@app.command("list")
def list_locks(
    prefix: Annotated[str, typer.Option("--prefix", help="Names that begin with this.")] = "",
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Who holds what, and who waits, over all shards."""
    _run(_list(prefix, directory, deadline, Output(json)))


async def _list(prefix: str, directory: Path, deadline_s: float, output: Output) -> int:
    async with _client(directory, deadline_s) as client:
        found = await client.lock.list(prefix)
    rows = [
        (info.name, info.mode, each.owner, each.token, each.remaining_ms / 1000, info.waiters_count)
        for info in found
        for each in info.holders
    ]
    output.table({"locks": [document(info) for info in found]}, COLUMNS, rows)
    return 0


COLUMNS = ("name", "mode", "holder", "token", "remaining s", "waiting")


def document(info: LockInfo) -> dict[str, Any]:
    holders = [{"owner": each.owner, "token": each.token, "remaining_ms": each.remaining_ms} for each in info.holders]
    waiters = [{"owner": each.owner, "mode": each.mode, "waited_ms": each.waited_ms} for each in info.waiters]
    return {"name": info.name, "mode": info.mode, "holders": holders, "waiters": waiters}


@app.command()
def watch(
    name: Name,
    events: Annotated[int | None, typer.Option("--events", help="Stop after so many.", min=1)] = None,
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
    json: Annotated[bool, typer.Option("--json", help="A JSON document per change and line.")] = False,
) -> None:
    """Who holds a lock, now and at every change: token and owner, or `free`. Runs until it is interrupted, or for --events."""
    _run(_watch(name, events, directory, deadline, json))


async def _watch(name: str, events: int | None, directory: Path, deadline_s: float, json: bool) -> int:
    async with _client(directory, deadline_s) as client, client.lock.watch(name) as changes:
        note("watching")
        seen = 0
        async for change in changes:
            print(_line(change, json), flush=True)
            seen += 1
            if seen == events:
                break
    return 0


def _line(change: LockChange, json: bool) -> str:
    from json import dumps

    holder = change.holder
    if json:
        told = {"owner": holder.owner, "token": holder.token} if holder is not None else None
        return dumps({"name": change.name, "holder": told}, ensure_ascii=False)
    return f"{holder.token}\t{holder.owner}" if holder is not None else "free"


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND")],
    ttl: Ttl = 10.0,
    wait: Wait = 0.0,
    owner: Owner = None,
    grace: Annotated[float, typer.Option("--grace", help="Seconds between SIGTERM and SIGKILL.")] = GRACE_S,
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
) -> None:
    """Run a command while holding a lock; the exit code is the command's.

    TENFOLD_LOCK_TOKEN in its environment is the fencing token. When the lock is lost, the command and all of its process group get
    SIGTERM, and SIGKILL after --grace; the exit code is 1 then. So does what the command leaves behind when it ends.
    """
    from client.cli.lock_run import run_holding

    _run(run_holding(lambda: _client(directory, deadline), name, command, ttl, wait, owner or _this_process(), grace))
