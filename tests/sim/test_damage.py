"""Disks that lose or change what they hold: what is left says so, and is made whole from the others."""

from __future__ import annotations

import asyncio
import re

import pytest

from chaos.sim.disk import Medium
from chaos.sim.run import Options, Run, SeedResult, run_seed
from chaos.sim.schedule import GROUPS, Fault
from cluster.ports import StorageFailed

DAMAGE = GROUPS["damage"]


def told(result: SeedResult) -> str:
    return "\n".join([f"seed {result.seed}: {result.verdict}", *result.reasons, *result.tail[-40:]])


def fault(at_s: float, kind: str, *draws: float, for_s: float = 0.3) -> Fault:
    return Fault(at_s, kind, for_s, (*draws, *[0.0] * (3 - len(draws))))  # type: ignore[arg-type]


def test_a_wiped_node_is_rebuilt_however_often_it_had_started() -> None:
    """Its count of lives is lost with its disk, and its peers remember it."""
    lives = [fault(1.0 + at, "kill", 0.0) for at in range(3)]
    run = Run(Options(seed=3, duration_s=8.0, schedule=(*lives, fault(5.0, "wipe", 0.0)), shipped_limits=True))
    result = run.execute()
    assert result.verdict == "ok" and result.faults == 4, told(result)
    assert run.nemesis.damage.damaged() == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_made_whole(kind: str) -> None:
    """Some of these seeds see replicas in quarantine, and all of them end whole."""
    faults = tuple(fault(2.0 + 2 * at, kind, 0.37 * at % 1.0, 0.1, 0.61 * at % 1.0) for at in range(4))
    result = run_seed(Options(seed=11, duration_s=9.0, nodes=3, schedule=faults))
    assert result.verdict == "ok", told(result)


def test_a_node_that_has_another_replica_by_now_counts_for_nothing_in_a_list_that_names_its_old_one() -> None:
    """From the moment a wiped node has its new replica, until no list in force names the one it lost."""
    run = Run(Options(seed=3, duration_s=6.0, schedule=(fault(2.0, "wipe", 0.0),), shipped_limits=True))
    cluster, seen = run.cluster, 0
    whole = run._look_once

    def look(*, thorough: bool) -> None:
        nonlocal seen
        whole(thorough=thorough)
        for shard in range(cluster.shards + 1):
            replica = cluster.replicas(shard).get("n1")
            for voters in cluster.voters_in_force(shard):
                if replica is not None and "n1" in [
                    node for each, node in voters.items() if each != replica.core.replica
                ]:
                    seen += 1
                    assert "n1" in run.nemesis.damage.damaged()
                    assert any("n1" not in side.nodes and side.size == len(voters) for side in cluster.sides(shard))

    run._look_once = look  # type: ignore[method-assign]
    result = run.execute()
    assert result.verdict == "ok", told(result)
    assert seen and run.nemesis.damage.damaged() == []


def test_a_minority_is_damaged_at_any_time() -> None:
    """Three wipes at one moment: with three nodes the budget allows one."""
    faults = tuple(fault(3.0 + at / 10, "wipe", draw) for at, draw in enumerate((0.0, 0.5, 0.99)))
    run = Run(Options(seed=4, duration_s=4.0, nodes=3, schedule=faults))
    result = run.execute()
    assert result.verdict == "ok", told(result)
    assert len(set(re.findall(rb"the disk of (n\d) is wiped", run.load.file.getvalue()))) == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_among_other_faults(seed: int) -> None:
    result = run_seed(Options(seed=seed, duration_s=6.0, kinds=(*GROUPS["all"], *DAMAGE)))
    assert result.verdict == "ok", told(result)


# -- the medium --------------------------------------------------------------------------------------------------------


def filled(appends: int) -> Medium:
    """A log of one file."""
    medium = Medium(1, "n1")
    disk = medium.attach_disk(lambda: 0.0)
    disk.make_directory("log")
    file = disk.create("log/1.tmp")
    for number in range(appends):
        file.append([bytes([1 + number]) * 100])
    disk.rename("log/1.tmp", "log/1.log")
    return medium


def test_the_rounds_that_a_power_cut_may_tear_are_never_damaged() -> None:
    assert [filled(appends).old_bytes("log/1.log") for appends in range(5)] == [0, 0, 0, 100, 200]
    medium = filled(4)
    disk = medium.attach_disk(lambda: 0.0)
    disk.create("log/2.log").append([b"later"])
    assert medium.old_bytes("log/1.log") == 200
    disk.create("log/3.log")
    assert medium.old_bytes("log/1.log") == 400, "two files follow, so all of it was synced"


def test_a_stale_block_reads_as_before_its_last_write() -> None:
    medium = filled(4)
    assert medium.blank("log/1.log", 50, 150) and not medium.blank("log/1.log", 50, 150)
    data = medium.attach_disk(lambda: 0.0).open("log/1.log").read(0, 400)
    assert data == b"\1" * 50 + bytes(100) + b"\2" * 50 + b"\3" * 100 + b"\4" * 100


def test_reads_fail_for_a_while() -> None:
    medium, now = filled(2), 0.0
    file = medium.attach_disk(lambda: now).open("log/1.log")
    medium.unreadable_until = 1.0
    with pytest.raises(StorageFailed, match="EIO"):
        file.read(0, 1)
    assert medium.refused
    now = 1.0
    assert file.read(0, 1) == b"\1"


def test_a_wiped_disk_is_empty_and_the_old_one_is_out_of_reach() -> None:
    medium = filled(2)
    old = medium.attach_disk(lambda: 0.0).open("log/1.log")
    medium.kill()
    medium.wipe()
    old.append([b"too late"])
    assert medium.disk.names == {}
    assert asyncio.run(_flushed(medium)) == []


async def _flushed(medium: Medium) -> list[bytes]:
    state = medium.attach_state(lambda: 0.0)
    return [key for key, _ in state.scan(b"", b"\xff")]
