"""Short seeds of the whole thing: they pass, they repeat, and they find bugs that were put in on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from chaos.bugs.catalogue import CATALOGUE
from chaos.bugs.patch import infected
from chaos.sim.load import Load
from chaos.sim.nemesis import Nemesis
from chaos.sim.run import Options, Run, SeedResult, run_seed
from chaos.sim.schedule import GROUPS, MIXES, Fault, draw_schedule, kinds_in, kinds_of, words_for
from chaos.sim.tastes import MIXED_SHARE, TASTES, taste_of
from cluster.raft import appends, core
from cluster.raft.core import RaftCore
from cluster.raft.state import State
from node.app import Node
from node.machines.sessions import Sessions

SHORT_S = 3.5
SEEDS = 40
SAME = ("seed", "verdict", "trace_hash", "operations", "faults", "virtual_s")


def told(result: SeedResult) -> str:
    return "\n".join([f"seed {result.seed}: {result.verdict}", *result.reasons, *result.tail[-40:]])


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_a_seed_is_ok(seed: int) -> None:
    result = run_seed(Options(seed=seed, duration_s=SHORT_S, kinds=kinds_of(seed)))
    assert result.verdict == "ok", told(result)
    assert result.operations > 10 and result.applied > 20


def test_processes_agree_on_the_trace() -> None:
    """This one and two workers, each with another seed for its hashes."""
    command = [sys.executable, "-m", "tenfold", "sim", "run", "--seeds", "5..6", "--minutes", "0.06", "--jobs", "2"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    ended = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["verdict"] == "ok" and document["ratio"] > 0
    here = [run_seed(Options(seed=seed, duration_s=0.06 * 60, kinds=kinds_of(seed))) for seed in (5, 6)]
    for there, mine in zip(document["seeds"], here, strict=True):
        for name in SAME:
            assert there[name] == getattr(mine, name), name


def test_processes_agree_on_the_trace_when_members_come_and_go() -> None:
    """Then nodes ask each other for their status, which holds a map and says what process they are."""
    groups = ("all", "members", "damage")
    command = [sys.executable, "-m", "tenfold", "sim", "run", "--seed", "9303", "--minutes", "0.08"]
    ended = subprocess.run(
        [*command, "--faults", ",".join(groups), "--json"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (there,) = json.loads(ended.stdout)["seeds"]
    kinds = tuple(kind for group in groups for kind in GROUPS[group])
    run = Run(Options(seed=9303, duration_s=0.08 * 60, kinds=kinds))
    asked: list[str] = []
    status = Node.status

    def counted(node: Node, *, digests: bool = False) -> Any:
        asked.append(node.config.node)
        return status(node, digests=digests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "status", counted)
        mine = run.execute()
    assert asked, "nobody asked for a status"
    for name in SAME:
        assert there[name] == getattr(mine, name), name


def test_seeds_take_the_mixes_of_faults_in_turn() -> None:
    mixes = {",".join(mix) for mix in MIXES}
    seeds = range(len(MIXES) * (len(TASTES) + MIXED_SHARE))
    met = {(taste_of(seed).name, words_for(kinds_of(seed))) for seed in seeds}
    assert met == {(taste_of(seed).name, mix) for seed in seeds for mix in mixes}


@pytest.mark.parametrize("words", [*map(",".join, MIXES), "none", "kill,cut", "damage,kill"])
def test_the_words_for_kinds_name_them_all(words: str) -> None:
    assert words_for(kinds_in(words.split(","))) == words


def test_another_seed_is_another_trace() -> None:
    hashes = {run_seed(Options(seed=seed, duration_s=2.0)).trace_hash for seed in (1, 2)}
    assert len(hashes) == 2


def test_a_judge_that_dies_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(load: Load, *, complete: bool) -> None:
        raise RuntimeError("no judgement")

    monkeypatch.setattr(Load, "judge", judge)
    result = run_seed(Options(seed=1, duration_s=1.0, schedule=()))
    assert result.verdict == "crash" and "no judgement" in result.reasons[0], told(result)


@pytest.mark.parametrize("ripe", [False, True])
def test_a_fault_counts_once_it_has_done_something(ripe: bool) -> None:
    """A trap when it springs, a sync when it fails, a cut when it cuts; and a failure that never came excuses nothing."""
    draws = (0.0, 0.3, 0.0)
    ends_s, trap = (6.0, "at-commit") if ripe else (0.02, "at-snapshot")
    faults = (Fault(2.0, "cut", 1.0, draws), Fault(2.001, "cut", 1.0, draws), Fault(2.002, trap, 0.2, draws))
    sync = Fault(2.003, "failed-sync", 0.0, (0.0, 0.3, 0.0 if ripe else 0.9))
    run = Run(Options(seed=3, duration_s=2.005 + ends_s, schedule=(*faults, sync), shipped_limits=True))
    result = run.execute()
    assert result.verdict == "ok", told(result)
    assert result.faults == (3 if ripe else 1), told(result)
    assert not any(host.excused for host in run.cluster.hosts.values())


def test_a_schedule_is_data() -> None:
    drawn = draw_schedule(3, 20.0)
    assert drawn == draw_schedule(3, 20.0) != draw_schedule(4, 20.0)
    only = (Fault(1.0, "kill-leader", 0.5, (0.1, 0.2, 0.3)),)
    result = run_seed(Options(seed=3, duration_s=4.0, schedule=only))
    assert result.verdict == "ok" and result.faults == 1, told(result)


def test_a_follower_that_gets_nothing_more_is_no_good_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all is healed each leader leaves its last peer out, but for heartbeats. The others serve all the same."""
    healed: list[int] = []
    heal, replicate = Nemesis.heal, appends.replicate

    def healing(nemesis: Nemesis) -> None:
        healed.append(1)
        heal(nemesis)

    def replicated(state: State) -> None:
        peers = state.peers
        if healed and len(peers) > 1:
            state.peers = tuple(each for each in peers if each != max(peers))
        replicate(state)
        state.peers = peers

    monkeypatch.setattr(Nemesis, "heal", healing)
    monkeypatch.setattr(appends, "replicate", replicated)
    result = run_seed(Options(seed=2, duration_s=2.0))
    assert result.verdict == "never-converged" and "has applied" in result.reasons[0], told(result)


@pytest.mark.parametrize("seed", [3, 10])
def test_a_replica_that_lags_says_so(seed: int) -> None:
    """Its leader speaks, and what it was told to apply is far ahead of what it has."""
    crashes = ("kill", "kill-leader", "power", "stop")
    result = run_seed(Options(seed=seed, duration_s=10.0, kinds=crashes, stale_bound=True))
    assert result.verdict == "ok", told(result)


@pytest.mark.parametrize("name", ["said-before-synced", "votes-for-an-older-log", "applies-twice"])
def test_a_bug_is_found(name: str) -> None:
    with infected(CATALOGUE[name]):
        found = any(run_seed(Options(seed=seed, duration_s=12.0)).verdict == "violation" for seed in range(1, 9))
    assert found


def test_a_bug_leaves_with_its_run() -> None:
    before = RaftCore.step, Sessions.admit, core.HANDLERS
    for bug in CATALOGUE.values():
        with infected(bug):
            pass
    assert (RaftCore.step, Sessions.admit, core.HANDLERS) == before
