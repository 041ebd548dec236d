"""`tenfold sim`: exit codes, what is told of a bad seed, and that the command it names shows the same again."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

EARLY = ("--minutes", "0.1", "--bug", "said-before-synced")
"""This bug convicts almost every seed within a second; the first one does."""


def sim(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tenfold", "sim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_bad_seed_is_told_with_the_command_that_repeats_it() -> None:
    first = sim("run", "--seed", "1", *EARLY, "--jobs", "2", "--json")
    assert first.returncode == 1, first.stderr
    document = json.loads(first.stdout)
    (bad,) = document["seeds"]
    assert document["verdict"] == bad["verdict"] == "violation" and document["trace_hash"] == bad["trace_hash"]
    command = next(
        line.partition("again: tenfold ")[2] for line in first.stderr.splitlines() if f"--seed {bad['seed']} " in line
    )
    again = sim(*shlex.split(command)[1:], "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["trace_hash"] == bad["trace_hash"]


def test_seeds_go_on_as_long_as_asked() -> None:
    ended = sim("run", "--for", "2s", "--minutes", "0.05", "--seed", "7", "--json")
    assert ended.returncode == 0, ended.stderr
    seeds = [row["seed"] for row in json.loads(ended.stdout)["seeds"]]
    assert seeds == list(range(7, 7 + len(seeds))) and "seeds from 7 on" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--faults", "earthquake"), "earthquake"),
        (("run", "--seeds", "9..1"), "9..1"),
        (("run", "--case", "no-such-file"), "no-such-file"),
        (("run", "--seed", "1", "--bug", "no-such-bug", "--minutes", "0.05"), "no-such-bug"),
        (("shrink", "1", "--minutes", "0.05", "--faults", "none"), "nothing to shrink"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], told: str) -> None:
    ended = sim(*arguments)
    assert ended.returncode == 64 and told in ended.stderr.splitlines()[-1], ended.stderr
    assert ended.stdout == ""


def test_a_size_can_be_asked_for_and_is_repeated_by_the_command_told() -> None:
    first = sim("run", "--seed", "1", *EARLY, "--nodes", "5", "--data-shards", "3", "--clients", "2", "--json")
    assert first.returncode == 1, first.stderr
    command = first.stderr.partition("again: tenfold ")[2].splitlines()[0]
    assert {"--nodes 5", "--data-shards 3", "--clients 2"} <= set(map(" ".join, pairwise(command.split()))), command
    assert all(f"n{number} " in first.stderr for number in range(1, 6))
    again = sim(*shlex.split(command)[1:], "--json")
    assert json.loads(again.stdout)["trace_hash"] == json.loads(first.stdout)["trace_hash"]


def test_the_bench_tells_speed_and_density(tmp_path: Path) -> None:
    ended = sim("bench", "--seeds", "1..1", "--minutes", "0.05", "--out", str(tmp_path), "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document == json.loads((tmp_path / "sim.json").read_text())
    assert (document["nodes"], document["data_shards"], document["clients"]) == (5, 3, 8)
    (row,) = document["seeds"]
    assert row["virtual_s"] > 3 and row["ratio"] > 0 and row["operations_per_s"] > 10 and row["faults_per_s"] > 0
    assert document["ratio"] == pytest.approx(row["virtual_s"] / row["cpu_s"], rel=0.1)
