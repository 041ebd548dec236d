"""A failing run is cut down to what it needs, written down, and repeated exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.sim import case as cases
from chaos.sim.case import Case, Expected
from chaos.sim.run import Options, SeedResult
from chaos.sim.schedule import Fault, draw_schedule
from chaos.sim.shrink import NothingToShrink, Shrinker
from cluster.errors import TenfoldError

FAULTS_MAX = 5


def ended(verdict: str, virtual_s: float = 60.0) -> SeedResult:
    return SeedResult(1, verdict, "", 0, 0, virtual_s, 0.1, reasons=["why"] if verdict != "ok" else [])


class Needy:
    """A run that fails if certain faults are there, with enough time and clients."""

    def __init__(self, needed: set[float], duration_s: float = 0.0, clients: int = 1, ends_s: float = 1000.0) -> None:
        self.needed, self.duration_s, self.clients, self.ends_s = needed, duration_s, clients, ends_s
        self.runs = 0

    def __call__(self, case: Case) -> SeedResult:
        self.runs += 1
        options = case.options
        there = {fault.at_s for fault in options.schedule or ()}
        bad = self.needed <= there and options.duration_s >= self.duration_s and options.clients >= self.clients
        return ended("violation", min(self.ends_s, options.duration_s + 5)) if bad else ended("ok")


def shrunk(run: Needy, faults: int = 40, tries: int = 1000) -> Options:
    schedule = tuple(Fault(float(at), "kill", 0.1, (0.0, 0.0, 0.0)) for at in range(1, faults + 1))
    case = Case(Options(seed=1, duration_s=60.0, schedule=schedule))
    return Shrinker(case, lambda told: None, tries, run).run().options


@pytest.mark.parametrize(
    "needed", [set(), {1.0}, {40.0}, {3.0, 37.0}, {1.0, 2.0, 20.0, 40.0}, {5.0, 6.0, 7.0, 8.0, 9.0}]
)
def test_nothing_is_left_but_what_is_needed(needed: set[float]) -> None:
    run = Needy(needed)
    assert {fault.at_s for fault in shrunk(run).schedule or ()} == needed
    assert run.runs < 150


def test_time_and_clients_are_cut_too() -> None:
    options = shrunk(Needy({3.0}, duration_s=11.0, clients=2))
    assert 11.0 <= options.duration_s < 20.0 and options.clients == 2
    assert shrunk(Needy({3.0}, ends_s=7.3)).duration_s <= 8.0


def test_another_verdict_is_not_the_same_failure() -> None:
    def run(case: Case) -> SeedResult:
        whole = len(case.options.schedule or ()) == 4
        return ended("violation") if whole else ended("never-converged")

    schedule = tuple(Fault(float(at), "kill", 0.1, (0.0, 0.0, 0.0)) for at in range(4))
    found = Shrinker(Case(Options(seed=1, schedule=schedule)), lambda told: None, 100, run).run()
    assert len(found.options.schedule or ()) == 4
    assert found.expected == Expected("violation", "why", "")


def test_what_another_oracle_says_is_not_the_same_failure() -> None:
    def run(case: Case) -> SeedResult:
        whole = len(case.options.schedule or ()) == 4
        reason = "two votes: replica 1" if whole else "key k/1: not linearizable"
        return SeedResult(1, "violation", "", 0, 0, 60.0, 0.1, reasons=[reason])

    schedule = tuple(Fault(float(at), "kill", 0.1, (0.0, 0.0, 0.0)) for at in range(4))
    found = Shrinker(Case(Options(seed=1, schedule=schedule)), lambda told: None, 100, run).run()
    assert len(found.options.schedule or ()) == 4


def test_a_good_run_has_nothing_to_shrink_and_tries_are_bounded() -> None:
    with pytest.raises(NothingToShrink):
        shrunk(Needy({1000.0}))
    run = Needy({3.0, 37.0})
    shrunk(run, tries=4)
    assert run.runs == 4


def test_a_case_is_written_and_read(tmp_path: Path) -> None:
    options = Options(seed=7, duration_s=12.5, nodes=5, schedule=tuple(draw_schedule(7, 12.0)))
    case = Case(options, "votes-twice", Expected("violation", "two votes", "abc"))
    path = tmp_path / "some" / "case.json"
    cases.write(case, path)
    assert cases.read(path) == case
    told = json.loads(path.read_text())
    assert told["format"] == 1 and told["seed"] == 7 and told["schedule"][0]["kind"]
    for wrong in (
        {**told, "format": 2},
        {**told, "schedule": [{"at_s": 1, "kind": "no such", "for_s": 1, "draws": [0, 0, 0]}]},
        {**told, "more": 1},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(TenfoldError, match="case"):
            cases.read(path)


@pytest.mark.parametrize(("bug", "first"), [("never-steps-down", 3)])
def test_a_seeded_bug_shrinks_to_a_few_faults(bug: str, first: int, tmp_path: Path) -> None:
    """And the case that is written fails the same way, with the same trace, in another process. The seed that comes first found
    the bug once, which only saves time."""
    runs = (Case(Options(seed=seed, duration_s=5.0), bug) for seed in (first, *range(1, 40)))
    bad = next(case for case in runs if case.run().verdict == "violation")
    found = Shrinker(bad, lambda told: None, 25).run()
    faults, path = found.options.schedule or (), tmp_path / "case.json"
    assert len(faults) <= FAULTS_MAX, faults
    cases.write(found, path)
    command = [sys.executable, "-m", "tenfold", "sim", "run", "--case", str(path), "--json"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1, again.stderr
    document = json.loads(again.stdout)
    assert found.expected is not None
    assert (document["verdict"], document["trace_hash"]) == (found.expected.verdict, found.expected.trace_hash)
    assert document["seeds"][0]["reasons"][0].splitlines()[0] == found.expected.reason
