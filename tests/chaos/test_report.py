"""The page for people, and when the demonstration counts as passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos import demo, experiment, report
from chaos.history import History, Recorder, header, read
from chaos.judge import Judgement, judge


def run(path: Path, *, kills: int = 2, stale: bool = False, lost: bool = False) -> tuple[History, Judgement]:
    with Recorder(path, header(3, {"nodes": 5}, {"shards": 1})) as recorder:
        for number in range(1, 4):
            recorder.record(1, "invoke", "put", key="k", value=f"v{number}", shard=1)
            recorder.record(1, "ok", "put", key="k", version=number, shard=1)
            for kill in range(kills if number == 2 else 0):
                recorder.fault("invoke", "kill", node=f"n{kill}", note="leads [1]")
                recorder.fault("ok", "kill", node=f"n{kill}")
        if stale:
            recorder.record(2, "invoke", "get", key="k", shard=1)
            recorder.record(2, "ok", "get", key="k", value="v1", version=1, shard=1)
        final = 2 if lost else 3
        recorder.record(2, "invoke", "get", key="k", shard=1, final=True)
        recorder.record(2, "ok", "get", key="k", value=f"v{final}", version=final, shard=1, final=True)
    history = read(path)
    return history, judge(history, path)


def test_a_violation_is_proved_on_the_page(tmp_path: Path) -> None:
    history, judgement = run(tmp_path / "h.jsonl", stale=True)
    report.write(tmp_path / "report.md", history, judgement)
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# Verdict: violation")
    proof = page.split("```text")[1].split("```")[0].strip().splitlines()
    assert len(proof) == 3 and "get by process 2: v1 (version 1)" in proof[-1]
    assert f"tenfold chaos check {tmp_path / 'h.jsonl'}" in page


def test_a_loss_is_named_on_the_page(tmp_path: Path) -> None:
    history, judgement = run(tmp_path / "h.jsonl", lost=True)
    report.write(tmp_path / "report.md", history, judgement)
    page = (tmp_path / "report.md").read_text()
    assert "## 1 acknowledged writes are lost" in page and "put by process 1 of v3: done (version 3)" in page
    assert "lost: put by process 1 of v3" in report.summary(judgement)


def test_kills_and_their_cost_are_on_the_page(tmp_path: Path) -> None:
    history, judgement = run(tmp_path / "h.jsonl")
    report.write(tmp_path / "report.md", history, judgement)
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# Verdict: ok") and "## Time without service" in page
    assert page.count("| kill | ok | n") == 2 and "leads [1]" in page


@pytest.mark.parametrize(
    ("story", "healed", "code"),
    [
        ({}, True, 0),
        ({"kills": 1}, True, 1),
        ({"stale": True}, True, 1),
        ({"lost": True}, True, 1),
        ({}, False, 3),
        ({"stale": True}, False, 1),
    ],
)
def test_the_demonstration_passes_only_with_its_kills_and_the_verdict_ok(
    tmp_path: Path, story: dict[str, Any], healed: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster").mkdir()
    _, judgement = run(tmp_path / "h.jsonl", **story)
    assert demo._conclude(judgement, tmp_path, healed) == code
    assert "verdict: " in capsys.readouterr().out
    assert (tmp_path / "cluster").exists() is (code != 0), "data stays where something went wrong"


def test_a_run_never_overwrites_another(tmp_path: Path) -> None:
    first = experiment.run_directory(tmp_path / "run", "kill-1")
    assert experiment.run_directory(tmp_path / "run", "kill-1") == first, "an empty directory is nobody's"
    (first / "history.jsonl").touch()
    assert experiment.run_directory(tmp_path / "run", "kill-1") == tmp_path / "run-2"
