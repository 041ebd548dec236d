"""The experiment with locks on real processes: holders and nodes killed and paused, and the same without fencing."""

from __future__ import annotations

from pathlib import Path

from chaos.history import read
from tests.process.test_chaos import tenfold


def test_locks_hold_while_nodes_and_holders_are_killed_and_paused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--nodes", 3, "--shards", 2, "--duration", "6s", "--seed", 3]
    result = tenfold("chaos", "run", "lock", *small, "--out", out)
    assert (result["verdict"], result["overlaps"], result["stale_tokens_accepted"]) == ("ok", 0, 0)
    assert result["acquisitions"] > 10 and result["faults"] >= 2 and result["seed"] == 3
    assert result["history"] == str(out / "history.jsonl") and (out / "report.md").read_text().startswith(
        "# Verdict: ok"
    )
    assert tenfold("chaos", "check", out / "history.jsonl") == result, "judged again, the same"
    history = read(out / "history.jsonl")
    faults = {each.f for each in history.faults}
    assert faults & {"kill-holder", "pause-holder"} and "kill" in faults
    assert len({each.process // 1_000_000 for each in history.operations}) >= 4, "holders are processes of their own"
    assert history.feed and history.header.options["fencing"] is True
