"""`tenfold kv`: read and write keys, load and dump files.

Standard output carries the result only; `get` and `dump` write bytes as they are. Exit codes: 0 ok, 1 failed, 2 some outcome is
unknown, 64 usage. What a command is given is named in errors as it is on the command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from client.cli.options import DEFAULT_DIRECTORY, Dir, Json
from client.cli.output import CALLERS_MISTAKES, Exit, Failure, Output, fail, note, run_command
from cluster.errors import TenfoldError

if TYPE_CHECKING:
    from client.cli.dump import ByteSink
    from client.cli.load import Loaded, Source
    from client.client import Client
    from client.watch import Watch, WatchEvent

DEADLINE_S = 10.0
LOAD_DEADLINE_S = 60.0

app = typer.Typer(no_args_is_help=True)

Deadline = Annotated[float, typer.Option("--deadline", help="Seconds for each operation.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY")]
Consistency = Annotated[
    Literal["linearizable", "lease", "stale"],
    typer.Option("--consistency", help="lease: cheaper, trusts clocks within 10%. stale: any replica."),
]
Prefix = Annotated[str, typer.Option("--prefix", help="Keys that begin with this.")]
TtlMs = Annotated[int | None, typer.Option("--ttl-ms", help="The key expires after so many milliseconds.")]


def raw(text: str) -> bytes:
    """An argument's bytes as the shell gave them."""
    return os.fsencode(text)


OPTIONS = {
    "deadline_s": "--deadline",
    "ttl_ms": "--ttl-ms",
    "version": "--if-version",
    **{name: f"--{name}" for name in ("prefix", "start", "end", "limit", "cursor", "token", "dir", "format")},
}
"""Fields of the client, as a user of the command line gives them."""


def _run(work: Coroutine[Any, Any, None], **options: str) -> None:
    """Runs a command. `options` are added to the names of OPTIONS."""
    run_command(_named(work, OPTIONS | options))


async def _named(work: Coroutine[Any, Any, None], options: dict[str, str]) -> None:
    try:
        await work
    except TenfoldError as error:
        field, colon, problem = error.message.partition(": ")
        if error.code not in CALLERS_MISTAKES or not colon or field not in options:
            raise
        raise TenfoldError(error.code, f"{options[field]}: {problem}", **error.details) from None


def _client(directory: Path, deadline_s: float) -> Client:
    """Fails at once if no node of the cluster runs: there is nothing to wait for."""
    from client.client import Client
    from cluster.local.launcher import Launcher
    from cluster.local.layout import Layout

    layout = Layout(directory)
    if not Launcher(layout).processes(layout.read().names):
        fail(Exit.FAILED, f"the cluster in {layout.root} is down; `tenfold up --dir {layout.root}` starts it")
    return Client.from_directory(directory, deadline_s=deadline_s)


@app.command()
def put(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="`-` reads standard input.")],
    directory: Dir = DEFAULT_DIRECTORY,
    ttl_ms: TtlMs = None,
    if_version: Annotated[
        int | None, typer.Option("--if-version", help="Only if the key has this version; 0: only if it is absent.")
    ] = None,
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Write a key; prints the version."""
    content = sys.stdin.buffer.read() if value == "-" else raw(value)
    _run(_put(key, content, ttl_ms, if_version, directory, deadline, Output(json)))


async def _put(
    key: str,
    value: bytes,
    ttl_ms: int | None,
    if_version: int | None,
    directory: Path,
    deadline_s: float,
    output: Output,
) -> None:
    async with _client(directory, deadline_s) as client:
        if if_version is None:
            version = await client.kv.put(raw(key), value, ttl_ms=ttl_ms)
        else:
            version = await client.kv.compare_and_set(raw(key), value, version=if_version, ttl_ms=ttl_ms)
    output.result({"version": version}, str(version))


@app.command()
def get(
    key: KeyArgument,
    directory: Dir = DEFAULT_DIRECTORY,
    consistency: Consistency = "linearizable",
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Read a key; prints its value and a line feed. Exit code 1 if there is no such key."""
    _run(_get(key, consistency, directory, deadline, Output(json)))


async def _get(key: str, consistency: Consistency, directory: Path, deadline_s: float, output: Output) -> None:
    from client.cli.dump import ByteSink
    from client.cli.records import shown

    async with _client(directory, deadline_s) as client:
        found = await client.kv.get(raw(key), consistency=consistency)
    if found is None:
        fail(Exit.FAILED, f"no such key: {key}")
    if output.json_wanted:
        output.result({**shown("value", found.value), "version": found.version, "stale_ms": found.stale_ms})
        return
    if consistency == "stale":
        note(f"at most {found.stale_ms} ms old")
    sink = ByteSink()
    sink.write(found.value, b"\n")
    sink.flush()


@app.command()
def delete(
    key: KeyArgument,
    directory: Dir = DEFAULT_DIRECTORY,
    if_version: Annotated[int | None, typer.Option("--if-version", help="Only if the key has this version.")] = None,
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Delete a key; prints whether it was there."""
    _run(_delete(key, if_version, directory, deadline, Output(json)))


async def _delete(key: str, if_version: int | None, directory: Path, deadline_s: float, output: Output) -> None:
    async with _client(directory, deadline_s) as client:
        if if_version is None:
            found = await client.kv.delete(raw(key))
        else:
            found = await client.kv.compare_and_delete(raw(key), version=if_version)
    output.result({"found": found}, "deleted" if found else "was not there")


@app.command()
def scan(
    prefix: Prefix = "",
    start: Annotated[str, typer.Option("--start", help="The first key.")] = "",
    end: Annotated[str, typer.Option("--end", help="The key behind the last.")] = "",
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many keys; then a cursor is told.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From the highest key down.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only")] = False,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Go on where an earlier scan stopped.")] = None,
    directory: Dir = DEFAULT_DIRECTORY,
    consistency: Consistency = "linearizable",
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Keys in order over all shards, one a line: key, tab, value. Each page of a shard is consistent in itself."""
    _run(
        _scan(
            {"prefix": raw(prefix), "start": raw(start), "end": raw(end), "reverse": reverse, "cursor": cursor},
            limit,
            keys_only,
            consistency,
            directory,
            deadline,
            json,
        )
    )


async def _scan(
    where: dict[str, object],
    limit: int | None,
    keys_only: bool,
    consistency: Consistency,
    directory: Path,
    deadline_s: float,
    json: bool,
) -> None:
    from client.cli.dump import JsonItems, write_lines

    async with _client(directory, deadline_s) as client:
        found = client.kv.scan(**where, limit=limit, keys_only=keys_only, consistency=consistency)  # type: ignore[arg-type]
        if json:
            document = JsonItems(keys_only)
            await document.write(aiter(found))
            document.end(cursor=found.cursor)
        else:
            await write_lines(aiter(found), keys_only)
            if found.cursor is not None:
                note(f"cursor: {found.cursor}")


@app.command()
def count(
    prefix: Prefix = "",
    directory: Dir = DEFAULT_DIRECTORY,
    consistency: Consistency = "linearizable",
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """How many keys there are."""
    _run(_count(prefix, consistency, directory, deadline, Output(json)))


async def _count(prefix: str, consistency: Consistency, directory: Path, deadline_s: float, output: Output) -> None:
    async with _client(directory, deadline_s) as client:
        number = await client.kv.count(raw(prefix), consistency=consistency)
    output.result({"count": number}, str(number))


@app.command()
def watch(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="Every key that begins with this.")] = None,
    token: Annotated[str | None, typer.Option("--token", help="Go on behind the event that had this token.")] = None,
    events: Annotated[int | None, typer.Option("--events", help="Stop after so many.", min=1)] = None,
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
    json: Annotated[bool, typer.Option("--json", help="A JSON document per event and line.")] = False,
) -> None:
    """Changes as they come: version, change, key, value. Runs until it is interrupted, or for --events.

    At its end it tells the token that goes on from there, on stderr. With --json each event has its own, and an interrupted watch
    writes it as a last document.
    """
    if (key is None) == (prefix is None):
        raise typer.BadParameter("give a KEY or --prefix, not both and not none", param_hint="KEY")
    _run(_watch(key, prefix, token, events, directory, deadline, json))


async def _watch(
    key: str | None,
    prefix: str | None,
    token: str | None,
    events: int | None,
    directory: Path,
    deadline_s: float,
    json: bool,
) -> None:
    from json import dumps

    from client.cli.dump import ByteSink

    async with _client(directory, deadline_s) as client:
        watched = client.kv.watch(
            raw(key) if key is not None else None, prefix=raw(prefix) if prefix is not None else None, token=token
        )
        async with watched:
            note("watching")
            sink = ByteSink()
            try:
                await _tell_events(watched, events, sink, json)
            except asyncio.CancelledError:
                _take_back_interrupt()
                if json:
                    sink.write(dumps({"token": watched.token}).encode() + b"\n")
                    sink.flush()
            if not json:
                note(f"token: {watched.token}")


async def _tell_events(watched: Watch, count: int | None, sink: ByteSink, json: bool) -> None:
    seen = 0
    async for event in watched:
        sink.write(_event_line(event, json))
        sink.flush()
        seen += 1
        if seen == count:
            return


def _take_back_interrupt() -> None:
    """The interrupt has done what it was for: what is left to do is done to its end."""
    task = asyncio.current_task()
    assert task is not None, "a command runs in a task"
    task.uncancel()


def _event_line(event: WatchEvent, json: bool) -> bytes:
    from json import dumps

    from client.cli.records import shown

    if not json:
        return b"%d\t%s\t%s\t%s\n" % (event.version, event.change.encode(), event.key, event.value)
    document = {"version": event.version, "change": str(event.change), **shown("key", event.key)}
    document |= {**shown("value", event.value), "token": event.token}
    return dumps(document, ensure_ascii=False).encode() + b"\n"


@app.command()
def load(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Keys are PREFIX/..., by default the file's name. Empty: no prefix.")
    ] = None,
    form: Annotated[Literal["lines", "jsonl", "csv"], typer.Option("--format")] = "lines",
    key_field: Annotated[
        str | None, typer.Option("--key", metavar="COLUMN", help="jsonl, csv: the field that is the key.")
    ] = None,
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Annotated[float, typer.Option("--deadline", help="Seconds for each record.")] = LOAD_DEADLINE_S,
    json: Json = False,
) -> None:
    """Every record of a file becomes a key. A bad line ends the load; what was acknowledged stays and is counted.

    lines: the bytes between line feeds under PREFIX/000000000001 and so on. jsonl: with --key the line under that field,
    otherwise objects with key and value. csv: each row as a JSON object under its column --key.

    Nothing is deleted: after a shorter file under the same prefix the keys of the longer one's last lines are still there.
    """
    name = file.name if prefix is None else prefix
    _run(_load(file, name, form, key_field, directory, deadline, Output(json)), key="--key", file="FILE")


async def _load(
    file: Path, prefix: str, form: str, key_field: str | None, directory: Path, deadline_s: float, output: Output
) -> None:
    from client.cli.load import Loaded, Source

    source = Source(file, prefix, form, key_field)
    source.records()
    loaded = Loaded()
    ended: Exception | None = None
    try:
        await _load_into(loaded, source, directory, deadline_s)
    except asyncio.CancelledError:  # before there was a client
        loaded.interrupted = True
        _take_back_interrupt()
    except (TenfoldError, Failure) as error:
        ended = error
    output.result(loaded.document(source), loaded.text())
    if loaded.interrupted:
        fail(Exit.FAILED, "interrupted")
    if ended is not None:
        raise ended
    if loaded.first_bad is not None:
        line, problem = loaded.first_bad
        stopped = f"; stopped behind line {loaded.stopped}" if loaded.stopped is not None else ""
        fail(Exit.UNKNOWN if loaded.unknown else Exit.FAILED, f"{file}: line {line}: {problem}{stopped}")


async def _load_into(loaded: Loaded, source: Source, directory: Path, deadline_s: float) -> None:
    from client.cli.load import Loader

    async with _client(directory, deadline_s) as client:
        try:
            await Loader(client, source, deadline_s, loaded).run()
        except asyncio.CancelledError:
            loaded.interrupted = True
            _take_back_interrupt()


@app.command()
def dump(
    prefix: Annotated[str, typer.Option("--prefix", help="Keys PREFIX/..., as `load` made them; by default all.")] = "",
    directory: Dir = DEFAULT_DIRECTORY,
    deadline: Deadline = DEADLINE_S,
    json: Json = False,
) -> None:
    """Values in the order of their keys, each ended by a line feed: the bytes of a line load.

    With --json keys, versions and values; base64 where they are not UTF-8.
    """
    _run(_dump(prefix, directory, deadline, json))


async def _dump(prefix: str, directory: Path, deadline_s: float, json: bool) -> None:
    from client.cli.dump import JsonItems, write_values
    from client.cli.load import key_prefix

    async with _client(directory, deadline_s) as client:
        items = client.kv.scan(prefix=key_prefix(prefix))
        if json:
            document = JsonItems()
            await document.write(aiter(items))
            document.end()
        else:
            note(f"{await write_values(aiter(items))} records")
