"""A whole run on a cluster without processes: it heals, whatever ends it, and its history can be judged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chaos import runner
from chaos.checkers.linearizability import Verdict
from chaos.history import Recorder, header, read
from chaos.judge import judge
from chaos.nemesis import schedule
from chaos.nemesis.steps import NeverHealed
from chaos.runner import kill_under_load
from tests.chaos.shadow_cluster import ShadowCluster
from tests.chaos.true_store import TrueStore


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "FIRST_S", 0.05)
    monkeypatch.setattr(schedule, "INTERVAL_S", (0.1, 0.2))
    monkeypatch.setattr(schedule, "DOWN_S", (0.0, 0.05))


async def run(cluster: ShadowCluster, store: TrueStore, path: Path, told: list[str]) -> None:
    with Recorder(path, header(1, {}, {})) as recorder:
        async with asyncio.timeout(20):
            await kill_under_load(cluster, [store], recorder, 6, 1, 0.8, told.append)


async def test_a_run_from_load_to_final_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PROGRESS_S", 0.2)
    cluster, told, path = ShadowCluster(), list[str](), tmp_path / "h.jsonl"
    await run(cluster, TrueStore(1, unknown=0), path, told)
    judgement = judge(read(path), path)
    assert judgement.result.verdict is Verdict.OK and judgement.result.faults >= 1 and not judgement.durability.unread
    assert cluster.up == set(cluster.nodes)
    assert any("per s" in line for line in told) and told[-1].startswith("healed")


async def test_a_cluster_that_does_not_heal_leaves_an_honest_history(tmp_path: Path) -> None:
    cluster, path = ShadowCluster(), tmp_path / "h.jsonl"
    cluster.refuse = set(cluster.nodes)
    with pytest.raises(NeverHealed, match="ended while starting"):
        await run(cluster, TrueStore(1, unknown=0), path, [])
    judgement = judge(read(path), path)
    assert judgement.result.verdict is Verdict.UNKNOWN, "nothing was read back"


async def test_a_load_that_crashes_ends_the_run_and_the_cluster_is_healed(tmp_path: Path) -> None:
    class Buggy(TrueStore):
        async def put(self, key: str, value: str, *, deadline_s: float) -> int:
            if len(cluster.up) < 5:
                raise ZeroDivisionError
            return await super().put(key, value, deadline_s=deadline_s)

    cluster = ShadowCluster()
    with pytest.raises(ZeroDivisionError):
        await run(cluster, Buggy(1), tmp_path / "h.jsonl", [])
    assert cluster.most_down and cluster.up == set(cluster.nodes)
