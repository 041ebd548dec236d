"""One node at a time, and only while the cluster is whole; with nodes that are played."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from cluster.errors import Code, TenfoldError
from cluster.local.health import moving, voting
from cluster.local.launcher import Launcher
from cluster.local.rolling import Restarted, RollingRestart
from proto.gen import meta_pb2, node_pb2
from tests.chaos.shadow_cluster import ShadowCluster


class Stage:
    """A shadow cluster as a rolling restart sees it. `killed` do not stop in time."""

    def __init__(self, killed: Sequence[str] = ()) -> None:
        self.cluster = ShadowCluster(lag_looks=3)
        self.told: list[str] = []
        self.stopped: list[str] = []
        self._killed = killed

    async def stop(self, nodes: Sequence[str]) -> list[str]:
        self.stopped.extend(nodes)
        await self.cluster.kill(*(node for node in nodes if node in self.cluster.up))
        return [node for node in nodes if node in self._killed]

    async def start(self, nodes: Sequence[str]) -> list[str]:
        await self.cluster.restart(*nodes)
        return list(nodes)

    async def statuses(self) -> dict[str, node_pb2.StatusReply]:
        return {each.node: each.reply for each in await self.cluster.status() if each.reply is not None}

    async def run(self, nodes: Sequence[str], timeout_s: float = 5.0) -> Restarted:
        restart = RollingRestart(cast(Launcher, self), self.statuses, self.cluster.shard_map, self.told.append)
        async with asyncio.timeout(20):
            return await restart.run(nodes, timeout_s)


async def test_each_is_restarted_once_and_never_are_two_away() -> None:
    stage = Stage(killed=["n2"])
    done = await stage.run(stage.cluster.nodes)
    assert done == Restarted(stage.cluster.nodes, ["n2"]) and stage.stopped == stage.cluster.nodes
    assert all(len(away) == 1 for away in stage.cluster.most_down), "one that has not caught up is away"
    assert stage.told[-1] == "n5 is back and has caught up, 5 of 5"


async def test_nothing_is_stopped_while_another_is_away() -> None:
    stage = Stage()
    await stage.cluster.kill("n5")
    with pytest.raises(TenfoldError, match=r"after 0\.2 s n5 does not answer; n1 was not stopped") as refused:
        await stage.run(["n1", "n2"], timeout_s=0.2)
    assert refused.value.code is Code.UNAVAILABLE and stage.stopped == []


async def test_one_that_does_not_come_back_is_the_last() -> None:
    stage = Stage()
    stage.cluster.lag_looks = 10**6
    with pytest.raises(TenfoldError, match="n1 has not caught up; n1 was restarted, n2, n3 were not"):
        await stage.run(["n1", "n2", "n3"], timeout_s=0.3)
    assert stage.stopped == ["n1"]


async def test_who_is_interrupted_leaves_no_node_down() -> None:
    """The node was stopped and is being started when the interrupt comes."""
    stage, starting = Stage(), asyncio.Event()
    start = stage.start

    async def slow(nodes: Sequence[str]) -> list[str]:
        if not starting.is_set():
            starting.set()
            await asyncio.Event().wait()
        return await start(nodes)

    stage.start = slow  # type: ignore[method-assign]
    restarting = asyncio.create_task(stage.run(["n1", "n2"]))
    await starting.wait()
    assert "n1" not in stage.cluster.up
    restarting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restarting
    assert stage.cluster.up == set(stage.cluster.nodes) and set(stage.stopped) == {"n1"}


def test_who_votes_and_what_moves_is_told_by_the_stages() -> None:
    shard_map = ShadowCluster().map
    assert moving(shard_map) == []
    first, *_ = shard_map.shards[2].replicas
    first.stage = meta_pb2.Replica.LEAVING
    shard_map.shards[2].replicas.add(id=9, node="n9", stage=meta_pb2.Replica.LEARNER)
    assert moving(shard_map) == [2]
    assert len(voting(shard_map)[2]) == 2 and not {first.node, "n9"} & voting(shard_map)[2]
