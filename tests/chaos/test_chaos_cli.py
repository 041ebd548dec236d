"""`tenfold chaos check` and what all of its commands refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chaos.cli import app, seconds
from chaos.history import Recorder, header
from client.cli.output import run_app
from cluster.errors import TenfoldError

RESULT = [
    "verdict", "operations", "acknowledged", "unknown", "failed", "acknowledged_lost", "linearizable", "keys_checked", "faults",
    "max_unavailable_ms", "unavailable_p99_ms", "seed", "history", "weak",
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def write(path: Path, final: str, version: int, final_type: str = "ok") -> None:
    """Two acknowledged writes, one kill, and what was read after healing."""
    with Recorder(path, header(9, {}, {})) as recorder:
        for number in (1, 2):
            recorder.record(1, "invoke", "put", key="k", value=f"v{number}", shard=1)
            recorder.record(1, "ok", "put", key="k", version=number, shard=1)
        recorder.fault("ok", "kill", node="n1")
        recorder.record(2, "invoke", "get", key="k", shard=1, final=True)
        told = {"value": final, "version": version} if final_type == "ok" else {}
        recorder.record(2, final_type, "get", key="k", shard=1, final=True, **told)  # type: ignore[arg-type]


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    code = run_app(app, ["check", str(path), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_a_kept_promise(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "v2", 2)
    code, result = check(path, capsys)
    assert code == 0 and list(result) == RESULT
    assert (result["verdict"], result["linearizable"], result["acknowledged"], result["faults"]) == ("ok", True, 2, 1)
    assert result["weak"] is True and result["seed"] == 9, "three operations prove little"


def test_a_broken_promise(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "v1", 1)
    code, result = check(path, capsys)
    assert (code, result["verdict"], result["acknowledged_lost"]) == (1, "violation", 1)


def test_an_open_question(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "", 0, "info")
    code, result = check(path, capsys)
    assert (code, result["verdict"], result["linearizable"]) == (2, "unknown", True)


def test_a_history_without_operations_passes_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recorder(path, header(1, {}, {})).close()
    code, result = check(path, capsys)
    assert (code, result["verdict"], result["linearizable"]) == (2, "unknown", None)


def test_people_are_told_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "v1", 1)
    assert run_app(app, ["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("verdict: violation") and "lost: put by process 1 of v2" in out and "key k:" in out


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"", "line 1: the header is missing"), (b"{}\n", "line 1"), (b"\x00\xff", "line 1")],
)
def test_what_is_no_history_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, problem: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    assert run_app(app, ["check", str(path)]) == 64
    captured = capsys.readouterr()
    assert captured.out == "" and problem in captured.err.splitlines()[-1]


def test_a_foreign_operation_is_named_by_its_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder(path, header(1, {}, {})) as recorder:
        recorder.record(1, "invoke", "put", key="k", value="a")
        recorder.record(2, "invoke", "enqueue", key="k", value="b")
    assert run_app(app, ["check", str(path)]) == 64
    assert "line 3: 'enqueue'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "kill", "--duration", "soon"], "duration: 'soon'"),
        (["run", "kill", "--duration", "0s"], "not between"),
        (["run", "kill", "--replicas", "7"], "replicas"),
        (["run", "kill", "--nodes", "0"], "nodes"),
        (["run", "kill", "--seed", "-1"], "seed"),
        (["run", "burn"], "burn"),
        (["nemesis", "kill", "--dir", "/nonexistent/place"], "holds no cluster"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    arguments: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(app, arguments) == 64
    assert problem in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["x", "x/y"])
def test_a_place_that_cannot_be_used_is_no_crash(inside: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["run", "kill", "--out", f"/dev/null/{inside}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: /dev/null") and last.endswith(": Not a directory")


def test_a_history_cut_in_the_middle_of_a_line_tells_what_is_whole(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, "v2", 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert run_app(app, ["check", str(path)]) == 64
    last = capsys.readouterr().err.splitlines()[-1]
    assert "line 8: not an event" in last and "the 6 events before it are intact" in last


def test_durations_have_units() -> None:
    assert [seconds(each) for each in ("60s", "60", "1.5m", "2000ms", "1h")] == [60, 60, 90, 2, 3600]
    for wrong in ("", "s", "-1s", "1d", "1e3"):
        with pytest.raises(TenfoldError):
            seconds(wrong)
