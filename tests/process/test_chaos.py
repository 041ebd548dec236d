"""The kill experiment on real processes: a small run from start to verdict, and a nemesis that is interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chaos.history import Event, read
from cluster.local.launcher import Condition
from cluster.local.local_cluster import LocalCluster

LIMIT_S = 90.0
TENFOLD = [sys.executable, "-m", "tenfold"]


def tenfold(*arguments: object, expect: int = 0) -> Any:
    """Runs a command with --json; the document it answers with."""
    command = [*TENFOLD, *map(str, arguments), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == expect, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    assert "Traceback" not in ended.stderr
    return json.loads(ended.stdout)


def test_nodes_killed_under_load_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--nodes", 3, "--shards", 3, "--duration", "5s", "--seed", 11]
    result = tenfold("chaos", "run", "kill", *small, "--out", out)
    assert (result["verdict"], result["linearizable"], result["acknowledged_lost"]) == ("ok", True, 0)
    assert result["faults"] >= 1 and result["operations"] > 500 and result["seed"] == 11
    assert 0 < result["unavailable_p99_ms"] <= result["max_unavailable_ms"]
    assert result["history"] == str(out / "history.jsonl")
    assert sorted(each.name for each in out.iterdir()) == ["history.jsonl", "logs", "options.json", "report.md"]
    assert sorted(each.name for each in (out / "logs").iterdir()) == ["n1.log", "n2.log", "n3.log"]
    assert (out / "report.md").read_text().startswith("# Verdict: ok")
    assert tenfold("chaos", "check", out / "history.jsonl") == result, "judged again, the same"
    _spoil(out / "history.jsonl", tmp_path / "spoilt.jsonl")
    spoilt = tenfold("chaos", "check", tmp_path / "spoilt.jsonl", expect=1)
    assert (spoilt["verdict"], spoilt["linearizable"]) == ("violation", False)


def _spoil(history: Path, into: Path) -> None:
    """Makes the last final read answer what an earlier read of its key answered."""
    lines = history.read_bytes().splitlines()
    answers = [json.loads(line) for line in lines[1:]]
    last = next(each for each in reversed(answers) if each.get("final") and each["type"] == "ok" and each.get("value"))
    early = next(
        each
        for each in answers
        if (each["f"], each["type"], each.get("key")) == ("get", "ok", last["key"])
        and each.get("value") != last["value"]
    )
    last |= {"value": early.get("value"), "version": early.get("version", 0)}
    lines[1 + last["index"]] = json.dumps(last).encode()
    into.write_bytes(b"\n".join(lines) + b"\n")


async def test_an_interrupted_nemesis_leaves_every_node_running(tmp_path: Path) -> None:
    out = tmp_path / "nemesis"
    async with LocalCluster(3, 3, 3, tmp_path / "cluster") as cluster:
        command = ["chaos", "nemesis", "kill", "--dir", tmp_path / "cluster", "--out", out, "--duration", "60s"]
        nemesis = await asyncio.create_subprocess_exec(
            *TENFOLD, *map(str, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            await _first_kill(out / "history.jsonl")
            for _ in range(2):  # an impatient user does not keep it from healing
                nemesis.send_signal(signal.SIGTERM)
            async with asyncio.timeout(LIMIT_S):
                _, told = await nemesis.communicate()
        finally:
            if nemesis.returncode is None:
                nemesis.kill()
        assert nemesis.returncode == 1 and told.decode().splitlines()[-1] == "error: interrupted"
        assert {each.condition for each in await cluster.status()} == {Condition.RUNNING}
        await cluster.wait_ready()
        events = [(each.f, each.type) for each in _faults(out / "history.jsonl")]
        assert events.count(("kill", "ok")) == events.count(("restart", "ok")) >= 1


async def _first_kill(history: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not any((each.f, each.type) == ("kill", "ok") for each in _faults(history)):
        assert time.monotonic() < deadline, "nobody was killed"
        await asyncio.sleep(0.05)


def _faults(history: Path) -> list[Event]:
    return read(history).faults if history.exists() else []
