"""`LocalCluster` as a program holds it, with real nodes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import psutil
import pytest

from cluster.errors import Code, TenfoldError
from cluster.local import launcher
from cluster.local.cluster_file import HOST, new_cluster
from cluster.local.free_ports import free_ports, is_free
from cluster.local.launcher import Condition
from cluster.local.layout import Layout
from cluster.local.local_cluster import LocalCluster

LIMIT_S = 60.0


async def test_a_program_holds_a_cluster_and_nothing_is_left_of_it() -> None:
    async with asyncio.timeout(LIMIT_S):
        async with LocalCluster(nodes=3, shards=2) as cluster:
            root = cluster.layout.root
            assert sorted(cluster.addresses) == ["n1", "n2", "n3"] and len(_alive(root)) == 3
            leading = await cluster.wait_ready()
            await cluster.kill(leading[1])
            zombies = [c for c in psutil.Process().children() if c.status() == psutil.STATUS_ZOMBIE]
            assert zombies == [], "the launcher reaps"
            moved = await _led_by_others(cluster, leading[1])
            assert set(moved) == {0, 1, 2}
            await cluster.restart(leading[1])
            await cluster.pause("n1")
            await cluster.kill("n1", "n2")  # a paused one, too
            while await cluster.leaders():  # the last node learns that it leads no more
                await asyncio.sleep(0.05)
            with pytest.raises(TenfoldError, match=r"no leader: meta, 1, 2 \(n1 is down, n2 is down\)") as late:
                await cluster.wait_ready(timeout_s=0.2)
            assert late.value.code is Code.DEADLINE_EXCEEDED
            conditions = {each.node: each.condition for each in await cluster.status()}
            assert conditions == {"n1": Condition.DOWN, "n2": Condition.DOWN, "n3": Condition.RUNNING}
        assert _alive(root) == []
        assert not root.exists()


async def _led_by_others(cluster: LocalCluster, node: str) -> dict[int, str]:
    while True:
        leading = await cluster.wait_ready()
        if node not in leading.values():
            return leading
        await asyncio.sleep(0.05)


async def test_a_start_that_is_interrupted_leaves_no_node(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        starting = asyncio.create_task(_enter(tmp_path / "c"))
        while not _alive(tmp_path / "c"):
            await asyncio.sleep(0.005)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert _alive(tmp_path / "c") == []


async def test_a_port_lost_between_its_choice_and_its_use_costs_no_other_node_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the port of n1 after it was found free."""
    with socket.socket() as squatter:
        squatter.bind((HOST, 0))
        squatter.listen()
        lost = squatter.getsockname()[1]
        answers = iter([True])
        monkeypatch.setattr(launcher, "is_free", lambda port: next(answers, False) if port == lost else is_free(port))
        layout = Layout(tmp_path / "c")
        layout.create(new_cluster(2, 1, 1, [], [lost, *free_ports(1)]))
        async with asyncio.timeout(LIMIT_S), LocalCluster(dir=layout.root) as cluster:
            assert next(answers, None) is None, "the port was believed free"
            assert cluster.addresses["n1"] != f"{HOST}:{lost}"
            replies = {each.node: each.reply for each in await cluster.status() if each.reply}
            assert sorted(replies) == ["n1", "n2"] and replies["n2"].incarnation == 1, "n2 was started once"
            assert [entry.born for entry in cluster.cluster.nodes] == [True, True]


async def _enter(home: Path) -> None:
    async with LocalCluster(nodes=2, replicas=1, shards=1, dir=home):
        pass


async def test_the_settings_of_the_cluster_in_the_directory_count_and_it_outlives_the_program(tmp_path: Path) -> None:
    home = tmp_path / "c"
    async with asyncio.timeout(LIMIT_S):
        async with LocalCluster(nodes=2, replicas=1, shards=1, dir=home) as first:
            born = first.cluster
        assert _alive(home) == []
        async with LocalCluster(nodes=3, dir=home) as second:
            assert second.cluster == born
            replies = [each.reply for each in await second.status()]
            assert [reply.incarnation for reply in replies if reply is not None] == [2, 2]
            shard_map = await second.shard_map()
            assert shard_map.cluster_id.hex() == born.cluster_id and len(shard_map.shards) == 2
    assert home.exists()


def _alive(home: Path) -> list[int]:
    """Pids of living nodes in this directory, found without the launcher."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and any(str(home) in word for word in words):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found
