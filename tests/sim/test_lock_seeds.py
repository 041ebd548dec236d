"""Short seeds with the workload of locks: they pass, they do enough, and they find bugs of locks that were put in on purpose."""

from __future__ import annotations

import pytest

from chaos.bugs.catalogue import CATALOGUE
from chaos.bugs.lock import LOCK_BUGS
from chaos.bugs.patch import infected
from chaos.sim.run import Options, SeedResult, run_seed

SHORT_S = 3.5


def told(result: SeedResult) -> str:
    return "\n".join([f"seed {result.seed}: {result.verdict}", *result.reasons, *result.tail[-40:]])


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_seed_is_ok(seed: int) -> None:
    result = run_seed(Options(seed=seed, duration_s=SHORT_S, workload="lock"))
    assert result.verdict == "ok", told(result)
    assert result.operations > 10 and result.applied > 20


def test_the_same_seed_is_the_same_trace() -> None:
    options = Options(seed=3, duration_s=2.0, workload="lock")
    assert run_seed(options).trace_hash == run_seed(options).trace_hash


def test_the_load_is_more_than_a_trickle() -> None:
    result = run_seed(Options(seed=7, duration_s=6.0, kinds=(), workload="lock"))
    assert result.verdict == "ok", told(result)
    assert result.operations / result.virtual_s > 50


@pytest.mark.parametrize("name", ["releases-anothers", "renews-the-dead", "fences-forget"])
def test_a_bug_is_found(name: str) -> None:
    bug = CATALOGUE[name]
    with infected(bug):
        found = any(
            run_seed(Options(seed=seed, duration_s=8.0, workload="lock")).verdict == "violation" for seed in range(1, 5)
        )
    assert found and bug in LOCK_BUGS
