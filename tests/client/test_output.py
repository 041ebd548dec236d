"""Results to stdout, the rest to stderr, and one table of exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer

from client.cli.output import Exit, Failure, Output, error_name, exit_code, fail, render_table, run_app, run_command
from cluster.errors import Code, TenfoldError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failure(3, "not healed"), 3),
        (TenfoldError(Code.INVALID_ARGUMENT), Exit.USAGE),
        (TenfoldError(Code.INVALID_CURSOR), Exit.USAGE),
        (TenfoldError(Code.VERSION_MISMATCH), Exit.FAILED),
        (TenfoldError(Code.WRONG_CLUSTER), Exit.FAILED),
        (TenfoldError(Code.DEADLINE_EXCEEDED), Exit.UNKNOWN),
        (TenfoldError(Code.UNKNOWN_OUTCOME), Exit.UNKNOWN),
        (typer.BadParameter("no"), Exit.USAGE),
        (KeyboardInterrupt(), Exit.FAILED),
        (BrokenPipeError(), Exit.FAILED),
        (NotADirectoryError(20, "Not a directory", "/dev/null/x"), Exit.FAILED),
        (OSError(28, "No space left on device"), Exit.FAILED),
        (OSError(22, "Invalid argument"), Exit.CRASH),
        (ZeroDivisionError(), Exit.CRASH),
        (TimeoutError(), Exit.CRASH),
    ],
)
def test_every_end_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def app_that(raises: BaseException | None, *, inside: bool) -> typer.Typer:
    """One command that ends by `raises`, thrown inside its coroutine or outside of it."""
    app = typer.Typer()

    async def work() -> None:
        if raises is not None:
            raise raises

    @app.command()
    def only(count: int = 1) -> None:
        if inside:
            run_command(work())
        elif raises is not None:
            raise raises

    return app


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (Failure(1, "it did\nnot work"), 1, "error: it did not work"),
        (TenfoldError(Code.NOT_A_NUMBER, "key: x"), 1, "error: NotANumber: key: x"),
        (typer.BadParameter("too many", param_hint="NODE"), 64, "error: Invalid value for NODE: too many"),
        (KeyboardInterrupt(), 1, "error: interrupted"),
        (KeyError("k"), 4, "error: unexpected KeyError: 'k' (TENFOLD_TRACEBACK=1 shows where)"),
    ],
)
def test_the_last_line_of_stderr_is_the_error_and_stdout_is_empty(
    error: BaseException, code: int, last: str, inside: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app_that(error, inside=inside), [], "tenfold") == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines()[-1] == last
    assert "Traceback" not in written.err


def test_a_traceback_is_shown_only_to_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_TRACEBACK", "1")
    assert run_app(app_that(ValueError("v"), inside=True), [], "tenfold") == 4
    written = capsys.readouterr().err
    assert "Traceback" in written and "in work" in written
    assert written.splitlines()[-1] == "error: unexpected ValueError: v"


@pytest.mark.parametrize("arguments", [["--nope"], ["--count", "x"], ["surplus"]])
def test_a_wrong_command_line_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app_that(None, inside=False), arguments, "tenfold") == 64
    written = capsys.readouterr()
    assert written.out == "" and written.err.splitlines()[-1].startswith("error: ")


def test_a_command_that_ends_well_ends_with_zero() -> None:
    assert run_app(app_that(None, inside=True), [], "tenfold") == 0


def test_json_is_one_document_and_a_table_is_for_humans(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["n1", 3, 0.25], ["[n2]", 1200, "-"]]
    Output(True).table({"nodes": ["n1", "\u00e9"]}, ["node", "leads", "cpu"], rows, "two")
    assert json.loads(capsys.readouterr().out) == {"nodes": ["n1", "\u00e9"]}
    Output(False).table({}, ["node", "leads", "cpu"], rows, "two")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in (lines[0], *lines[2:])] == [
        ["node", "leads", "cpu"],
        ["n1", "3", "0.2"],
        ["[n2]", "1200", "-"],
        ["two"],
    ]
    assert lines[2].index("3") == lines[3].index("1200") + 3, "numbers are aligned to the right"


def test_a_second_result_is_a_bug() -> None:
    output = Output(False)
    output.result({}, "one")
    with pytest.raises(AssertionError):
        output.result({}, "two")


def test_no_row_is_wrapped_however_long() -> None:
    assert len(render_table(["column"], [["x" * 500], ["y"]]).splitlines()) == 4


def test_names_of_codes_are_those_of_the_documents() -> None:
    assert [error_name(Code.INVALID_ARGUMENT), error_name(Code.NOT_LEADER)] == ["InvalidArgument", "NotLeader"]


def test_fail_ends_the_command() -> None:
    with pytest.raises(Failure, match="why") as raised:
        fail(Exit.NEVER_HEALED, "why")
    assert raised.value.code == 3


def test_a_reader_that_goes_away_is_no_crash() -> None:
    script = (
        "import sys, typer\nfrom client.cli.output import Output, run_app\napp = typer.Typer()\n"
        "@app.command()\ndef only() -> None:\n    Output(False).result({}, 'x' * 1_000_000)\n"
        "sys.exit(run_app(app, []))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
