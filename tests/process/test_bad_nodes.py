"""Nodes that lost their data or cannot start: never taken for new ones, named with their reason, and no harm to others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.local.layout import Layout
from tests.process.kv_cluster import COMMAND_TIMEOUT_S, REPOSITORY, tenfold


def answer(home: Path, *arguments: object, expect: int = 0) -> str:
    """What the command wrote to stdout, without the last line feed."""
    ended = tenfold(*arguments, "--dir", home)
    assert ended.returncode == expect, (arguments, ended)
    return ended.stdout.decode().removesuffix("\n")


def problem(home: Path, *arguments: object, expect: int = 1) -> str:
    """What a failing command wrote to stderr."""
    ended = tenfold(*arguments, "--dir", home)
    assert ended.returncode == expect and not ended.stdout and b"Traceback" not in ended.stderr, (arguments, ended)
    return ended.stderr.decode()


def table(home: Path) -> dict[str, str]:
    """Node to its line of `status`."""
    return {line.split()[0]: line for line in answer(home, "status").splitlines() if line.startswith("n")}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory for a cluster, which is stopped at the end if there is one."""
    yield tmp_path / "c"
    if Layout(tmp_path / "c").exists():
        answer(tmp_path / "c", "down")


def test_a_node_whose_folder_is_removed_does_not_vote_what_was_acknowledged_away(home: Path) -> None:
    answer(home, "up", "--nodes", 3, "--shards", 3)
    answer(home, "kv", "put", "y", "old")
    answer(home, "kill", "n3")
    answer(home, "kv", "put", "y", "ACKED")
    answer(home, "kill", "--all")
    shutil.rmtree(home / "n1")
    assert "its data is gone" in table(home)["n1"]
    told = tenfold("restart", "n1", "n3", "--dir", home)
    assert told.returncode == 0 and b"n1 lost its data" in told.stderr and b"n3 lost" not in told.stderr
    read = tenfold("kv", "get", "y", "--deadline", 3, "--dir", home)
    assert read.returncode in (1, 2) and read.stdout == b"", "only a majority that knows ACKED may answer"
    assert "quarantined" in table(home)["n1"] and "quarantined" not in table(home)["n3"]
    answer(home, "restart", "n2")
    assert answer(home, "kv", "get", "y") == "ACKED"
    assert b"lost its data" not in tenfold("restart", "n3", "--dir", home).stderr


def test_a_node_that_cannot_start_is_told_with_its_reason_and_the_others_run(home: Path) -> None:
    """The state of n2 is no state, and the folder of n3 is that of n1, as when folders were mixed up."""
    answer(home, "up", "--nodes", 5, "--replicas", 3, "--shards", 2)
    answer(home, "down")
    state = home / "n2" / "state"
    shutil.rmtree(state)
    state.write_bytes(b"no state")
    config = home / "n3" / "node.json"
    shutil.rmtree(home / "n3")
    shutil.copytree(home / "n1", home / "n3")
    before = config.read_bytes()
    last = problem(home, "up").splitlines()[-1]
    assert last.startswith("error: Unavailable: n3: ") and f"{config} is of node 'n1'" in last
    assert "n2 ended with exit code " in last and last.endswith("; the others run")
    assert config.read_bytes() == before, "it is not ours to write"
    shown = table(home)
    assert [name for name, line in shown.items() if "running" in line] == ["n1", "n4", "n5"]
    reason = Layout(home).last_lines("n2", 1)[0]
    assert reason in last and reason in shown["n2"] and "is of node 'n1'" in shown["n3"]
    nodes = {node["node"]: node for node in json.loads(answer(home, "status", "--json"))["nodes"]}
    assert nodes["n2"]["trouble"] == reason and "trouble" not in nodes["n1"]


def test_a_node_of_a_newer_format_is_refused_and_not_overwritten(home: Path) -> None:
    answer(home, "up", "--nodes", 2, "--replicas", 1, "--shards", 1)
    answer(home, "stop", "n2")
    path = home / "n2" / "node.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 2, "new": "field"}))
    kept = {each: each.read_bytes() for each in (path, home / "n1" / "node.json", home / "cluster.json")}
    assert "node.json has format 2, newer than this program's 1" in problem(home, "restart", "n2")
    assert {each: each.read_bytes() for each in kept} == kept
    assert "newer than" in table(home)["n2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_told_to_end_says_so_and_leaves_no_node(home: Path, number: signal.Signals) -> None:
    arguments = ["up", "--nodes", "2", "--replicas", "1", "--shards", "1", "--dir", str(home)]
    starting = subprocess.Popen([sys.executable, "-m", "tenfold", *arguments], stderr=subprocess.PIPE, cwd=REPOSITORY)
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while not (home / "n1" / "node.log").exists():  # the first node is being started
        assert time.monotonic() < deadline and starting.poll() is None
        time.sleep(0.002)
    starting.send_signal(number)
    _, told = starting.communicate(timeout=COMMAND_TIMEOUT_S)
    assert (starting.returncode, told.decode().splitlines()[-1]) == (1, "error: interrupted")
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(home / "n1") in (each.info["cmdline"] or [])]


@pytest.mark.parametrize(("command", "closed"), [("doctor", False), ("doctor", True), ("up", True)])
def test_a_stdout_that_takes_nothing_is_no_crash(tmp_path: Path, command: str, closed: bool) -> None:
    line = f'exec "{sys.executable}" -m tenfold {command} --dir "{tmp_path}" {">&-" if closed else "> /dev/full"}'
    ended = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, cwd=REPOSITORY, check=False)
    problems = ended.stderr.decode().splitlines()
    assert ended.returncode == 1, problems
    assert problems[-1] == ("error: stdout is closed" if closed else f"error: output: {os.strerror(28)}")
    assert len(problems) == 1 and not list(tmp_path.iterdir())
