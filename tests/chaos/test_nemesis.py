"""The nemesis: journal first, a minority at most, and everything it killed runs again at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.history import Recorder, header, read
from chaos.nemesis import kill
from chaos.nemesis.convergence import converged
from chaos.nemesis.kill import KillNemesis
from chaos.nemesis.schedule import PlannedKill, keeps_majorities
from chaos.nemesis.steps import NeverHealed
from tests.chaos.shadow_cluster import ShadowCluster

PLANS = [PlannedKill(0.01 * i, "leader" if i % 2 else "node", (0.37 * i) % 1, 0.005) for i in range(8)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "POLL_S", 0.002)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "history.jsonl", header(1, {}, {})) as recorder:
        yield recorder


def events(tmp_path: Path) -> list[tuple[str, str, str | None]]:
    return [(each.f, each.type, each.node) for each in read(tmp_path / "history.jsonl").faults]


async def test_all_plans_are_carried_out_and_no_majority_is_ever_down(recorder: Recorder, tmp_path: Path) -> None:
    cluster = ShadowCluster()
    nemesis = KillNemesis(cluster, recorder)
    async with asyncio.timeout(10):
        await nemesis.start()
        await nemesis.run(PLANS, 0.4)
        await nemesis.settle()
    await nemesis.heal()
    assert nemesis.kills == len(PLANS) and cluster.up == set(cluster.nodes)
    sets = {s.id: frozenset(r.node for r in s.replicas) for s in cluster.map.shards}
    assert len(cluster.most_down) == len(PLANS)
    assert all(keeps_majorities(sets, down) for down in cluster.most_down), "a node that lags counts as down"
    told = events(tmp_path)
    for node in cluster.nodes:
        mine = [(f, kind) for f, kind, each in told if each == node]
        whole = [("kill", "invoke"), ("kill", "ok"), ("restart", "invoke"), ("restart", "ok"), ("recovered", "ok")]
        assert mine == whole * (len(mine) // 5)


async def test_a_fault_is_journalled_before_it_is_injected(recorder: Recorder, tmp_path: Path) -> None:
    cluster = ShadowCluster()
    seen: list[list[tuple[str, str, str | None]]] = []

    async def look(*nodes: str) -> None:
        seen.append(events(tmp_path))

    cluster.kill = look  # type: ignore[method-assign]
    nemesis = KillNemesis(cluster, recorder)
    await nemesis.start()
    await nemesis.strike("n2")
    assert seen == [[("kill", "invoke", "n2")]]


async def test_healing_starts_what_was_killed_even_after_an_interrupt(recorder: Recorder) -> None:
    cluster = ShadowCluster()
    nemesis = KillNemesis(cluster, recorder)
    await nemesis.start()
    running = asyncio.create_task(nemesis.run([PlannedKill(0, "leader", 0.5, 60.0)], 60.0))
    async with asyncio.timeout(5):
        while not nemesis.kills:
            await asyncio.sleep(0)
    assert len(cluster.up) == 4
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await nemesis.heal()
    assert cluster.up == set(cluster.nodes)


async def test_a_node_that_does_not_start_again_is_told(recorder: Recorder) -> None:
    cluster = ShadowCluster()
    cluster.refuse = set(cluster.nodes)
    nemesis = KillNemesis(cluster, recorder)
    await nemesis.start()
    async with asyncio.timeout(5):
        with pytest.raises(NeverHealed, match="ended while starting"):
            await nemesis.run(PLANS, 30.0)
        with pytest.raises(NeverHealed, match="ended while starting"):
            await nemesis.heal()


async def test_a_node_that_dies_by_itself_is_told(recorder: Recorder) -> None:
    cluster = ShadowCluster()
    nemesis = KillNemesis(cluster, recorder)
    await nemesis.start()
    cluster.up.discard("n3")
    with pytest.raises(NeverHealed, match="n3 ended, and not by the nemesis"):
        await nemesis.run(PLANS, 5.0)


async def test_a_node_that_was_down_before_counts_and_is_left_alone(recorder: Recorder) -> None:
    cluster = ShadowCluster(replicas=5)
    cluster.up.discard("n1")
    nemesis = KillNemesis(cluster, recorder)
    async with asyncio.timeout(10):
        await nemesis.start()
        await nemesis.run(PLANS, 0.4)
        await nemesis.settle()
    await nemesis.heal()
    assert all("n1" in down and len(down) == 2 for down in cluster.most_down)
    assert cluster.up == {"n2", "n3", "n4", "n5"}


async def test_converged_waits_for_every_replica_and_names_what_is_missing() -> None:
    cluster = ShadowCluster(lag_looks=3)
    await cluster.restart("n4")
    await converged(cluster, 5.0)
    assert not any(cluster._lag.values())
    cluster.up.discard("n4")
    with pytest.raises(NeverHealed, match="n4 does not answer"):
        await converged(cluster, 0.05)
