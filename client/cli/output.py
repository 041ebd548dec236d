"""How every command speaks: the result on stdout, everything else on stderr, and one table of exit codes.

With `--json` stdout carries exactly one JSON document, and none if the command fails. Progress and logs go to stderr,
whose last line is the error, if there is one. A user sees a traceback only with TENFOLD_TRACEBACK=1.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Coroutine, Sequence
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import typer

from cluster.errors import Code, TenfoldError

R = TypeVar("R")


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1  # an operation failed, or a check found a violation
    UNKNOWN = 2  # the outcome or the verdict is unknown
    NEVER_HEALED = 3
    CRASH = 4  # an unexpected exception: a bug
    USAGE = 64


CALLERS_MISTAKES = frozenset({Code.INVALID_ARGUMENT, Code.INVALID_CURSOR})
"""Codes that end a command as a wrong option on the command line does."""


SURROUNDINGS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EBADF})
"""Of an OSError without a path: a full or broken disk, or a stdout that takes nothing, which is no bug."""


class Failure(Exception):
    """Ends the command with `code`; the message becomes the last line of stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def fail(code: int, message: str) -> NoReturn:
    """Ends the command: `message` as the last line of stderr, and exit code `code` (see Exit)."""
    raise Failure(code, message)


def note(message: str) -> None:
    """One line of progress for a human, on stderr."""
    print(message, file=sys.stderr, flush=True)


class Output:
    """Writes a command's result to stdout, once: a JSON document with `json_wanted`, else text or a table."""

    def __init__(self, json_wanted: bool) -> None:
        self.json_wanted = json_wanted
        self._written = False

    def result(self, document: Any, text: str = "") -> None:
        """`document` must be made of what JSON knows; `text` is what a human reads, nothing if empty."""
        assert not self._written, "a command has one result"
        self._written = True
        written = json.dumps(document, ensure_ascii=False) if self.json_wanted else text
        if written:
            sys.stdout.write(written + "\n")
            sys.stdout.flush()

    def table(self, document: Any, columns: Sequence[str], rows: Sequence[Sequence[object]], below: str = "") -> None:
        """`document` for JSON; for a human the rows under their columns, and `below` as a last line."""
        if self.json_wanted:
            self.result(document)
            return
        drawn = render_table(columns, rows)
        self.result(document, f"{drawn}\n{below}" if below else drawn)


def render_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned with two spaces between them, numbers to the right; no line is wrapped or cut, so that grep works."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        numeric = any(isinstance(row[position], int | float) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    console = Console(file=sys.stdout, width=10_000, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def error_name(code: Code) -> str:
    """The name a user meets: INVALID_ARGUMENT is InvalidArgument."""
    return "".join(part.capitalize() for part in code.name.split("_"))


def exit_code(error: BaseException) -> Exit | int:
    """The exit code that `error` ends a command with. An indefinite error of the table is an unknown outcome."""
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, typer.TyperException):
        return Exit.USAGE
    if isinstance(error, TenfoldError):
        if error.code in CALLERS_MISTAKES:
            return Exit.USAGE
        return Exit.FAILED if error.definite else Exit.UNKNOWN
    if isinstance(error, KeyboardInterrupt | BrokenPipeError | typer.Abort) or _of_surroundings(error):
        return Exit.FAILED
    return Exit.CRASH


def _of_surroundings(error: BaseException) -> bool:
    """A path that cannot be used, or a full disk: the user's to mend."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in SURROUNDINGS)


def report(error: BaseException) -> int:
    """Tells the user about `error`, on stderr; its exit code."""
    code = exit_code(error)
    if os.environ.get("TENFOLD_TRACEBACK") == "1":
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return code
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard_stdout()
    note("error: " + " ".join(_message(error, code).split()))
    return code


def _message(error: BaseException, code: int) -> str:
    if isinstance(error, Failure):
        return str(error)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        if context is not None:
            note(f"{context.get_usage()}\nTry '{context.command_path} --help'.")
        return error.format_message() or "a command is missing"
    if isinstance(error, TenfoldError):
        return f"{error_name(error.code)}: {error.message}"
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted"
    if isinstance(error, OSError) and _of_surroundings(error):
        return f"{error.filename or 'output'}: {error.strerror}"
    hint = "" if os.environ.get("TENFOLD_TRACEBACK") == "1" else " (TENFOLD_TRACEBACK=1 shows where)"
    return f"unexpected {type(error).__name__}: {error}{hint}"


def _discard_stdout() -> None:
    """stdout takes nothing any more: the interpreter's flush at exit must not complain about it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(work: Coroutine[Any, Any, R]) -> R:
    """Runs a command's coroutine to its end and returns what it returns; an exception ends the command by the table."""
    import uvloop

    try:
        result: R = uvloop.run(work)
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        raise typer.Exit(report(error)) from error
    return result


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """Runs a command line (sys.argv by default); the exit code. Nothing but SystemExit of `--help` kind leaves here."""
    if sys.stdout is None:  # before anything is done, as its result could not be told
        return report(Failure(Exit.FAILED, "stdout is closed"))
    try:
        code = app(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    if code == 130:  # typer's code for an interrupt, which is not in our table
        return report(KeyboardInterrupt())
    return code if isinstance(code, int) else Exit.OK
