"""Rounds of joining, dying and leaving: journal first, the dead one is waited for, and as many nodes at the end as before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chaos.history import Recorder, header, read
from chaos.nemesis import members
from chaos.nemesis.convergence import converged
from chaos.nemesis.members import MembersNemesis
from chaos.nemesis.rolling import RollingNemesis
from chaos.nemesis.steps import NeverHealed
from cluster.errors import Code, TenfoldError
from cluster.local.rolling import Restarted
from cluster.ring.shard_map import first_map
from proto.gen import meta_pb2, node_pb2
from tests.chaos.shadow_cluster import ShadowCluster


class GrowingCluster:
    """Nodes by name, each shard on the first three. A dead node's replicas are elsewhere once the map was looked at `slow` times,
    one of them under way until then."""

    def __init__(self, slow: int = 3) -> None:
        self._map = first_map(b"0" * 16, [(f"n{i}", f"n{i}:1", "") for i in (1, 2, 3)], 2, 3)
        self.nodes = ["n1", "n2", "n3"]
        self.dead: set[str] = set()
        self.busy_at_removal: list[str] = []
        self.logs: list[str] = []
        self.refuse = ""
        self._next, self._slow, self._looks = 4, slow, 0

    def _place(self, stage: meta_pb2.Replica.Stage.ValueType = meta_pb2.Replica.VOTER) -> None:
        living = [node for node in self.nodes if node not in self.dead][:3]
        for shard in self._map.shards:
            del shard.replicas[:]
            for number, node in enumerate(living, 1):
                shard.replicas.add(id=number, node=node, stage=stage if number == 3 else meta_pb2.Replica.VOTER)

    def _holds(self, node: str) -> bool:
        return any(replica.node == node for shard in self._map.shards for replica in shard.replicas)

    async def shard_map(self) -> meta_pb2.ShardMap:
        if self.dead:
            self._looks += 1
            if self._looks >= self._slow:
                self._place(meta_pb2.Replica.LEARNER if self._looks == self._slow else meta_pb2.Replica.VOTER)
        return self._map

    async def add(self, count: int = 1) -> list[str]:
        if self.refuse == "add":
            raise TenfoldError(Code.UNAVAILABLE, "no port")
        added = [f"n{self._next + i}" for i in range(count)]
        self._next += count
        self.nodes.extend(added)
        return added

    async def rebalance(self) -> node_pb2.RebalanceReply:
        return node_pb2.RebalanceReply(moves=[node_pb2.Move(to=self.nodes[-1])])

    async def destroy(self, node: str) -> None:
        self.dead.add(node)
        self._looks = 0

    async def drain(self, node: str) -> int:
        self.nodes.append(self.nodes.pop(self.nodes.index(node)))
        self._place()
        return 4

    async def remove(self, node: str) -> None:
        if self._holds(node):
            self.busy_at_removal.append(node)
        self.nodes.remove(node)
        self.dead.discard(node)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "POLL_S", 0.002)


async def run(
    cluster: GrowingCluster, path: Path, seed: int, duration_s: float = 0.0, rounds: int = 0
) -> MembersNemesis:
    with Recorder(path, header(1, {}, {})) as recorder:
        nemesis = MembersNemesis(cluster, recorder, seed, keep_log=cluster.logs.append)
        async with asyncio.timeout(10):
            await nemesis.run(duration_s, rounds)
    return nemesis


@pytest.mark.parametrize("seed", range(8))
async def test_a_round_ends_with_as_many_nodes_and_waits_for_the_repair(tmp_path: Path, seed: int) -> None:
    cluster, path = GrowingCluster(), tmp_path / "h.jsonl"
    nemesis = await run(cluster, path, seed)
    assert len(cluster.nodes) == 3 and not cluster.dead and cluster.busy_at_removal == []
    assert (nemesis.kills, nemesis.moved, len(cluster.logs)) == (1, 5, 2)
    told = [(each.f, each.type) for each in read(path).faults]
    steps = ["add", "rebalance", "kill", "repair", "remove", "drain", "remove"]
    assert told == [(step, kind) for step in steps for kind in ("invoke", "ok")]
    dead, drained = (each.node for each in read(path).faults if (each.f, each.type) == ("remove", "ok"))
    assert cluster.logs == [dead, drained]


async def test_seeds_choose_others_and_rounds_go_on_for_the_time_given(tmp_path: Path) -> None:
    chosen = set()
    for seed in range(12):
        cluster = GrowingCluster()
        await run(cluster, tmp_path / f"{seed}.jsonl", seed)
        chosen.add(tuple(cluster.logs))
    assert len(chosen) > 4
    cluster = GrowingCluster()
    nemesis = await run(cluster, tmp_path / "long.jsonl", 1, duration_s=0.2)
    assert nemesis.kills > 1 and len(cluster.nodes) == 3
    nemesis = await run(GrowingCluster(), tmp_path / "counted.jsonl", 1, rounds=3)
    assert nemesis.kills == 3


async def test_a_step_that_fails_or_never_ends_is_told_and_on_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = GrowingCluster()
    cluster.refuse = "add"
    with pytest.raises(NeverHealed, match="add of 2 nodes failed: no port"):
        await run(cluster, tmp_path / "a.jsonl", 1)
    monkeypatch.setattr(members, "STEP_S", 0.05)
    with pytest.raises(NeverHealed, match=r"repair of n\d failed: not done within 0.05 s"):
        await run(GrowingCluster(slow=10**9), tmp_path / "b.jsonl", 1)
    last = read(tmp_path / "b.jsonl").faults[-1]
    assert (last.f, last.type) == ("repair", "fail")


async def test_a_cluster_whose_replicas_move_has_not_converged() -> None:
    cluster = ShadowCluster()
    row = cluster.map.shards[3]
    row.replicas.add(id=9, node=next(n for n in cluster.nodes if n not in {r.node for r in row.replicas}), stage=1)
    with pytest.raises(NeverHealed, match=r"shards \[3\] are moving"):
        await converged(cluster, 0.05)
    row.replicas.pop()
    await converged(cluster, 5.0)


class Restartable:
    nodes = ("n1", "n2", "n3")

    def __init__(self) -> None:
        self.restarted: list[str] = []

    async def rolling_restart(self, *nodes: str) -> Restarted:
        self.restarted.extend(nodes)
        return Restarted(list(nodes), list(nodes) if nodes == ("n2",) else [])


async def test_rolling_takes_every_node_in_whole_rounds(tmp_path: Path) -> None:
    cluster, told = Restartable(), list[str]()
    with Recorder(tmp_path / "h.jsonl", header(1, {}, {})) as recorder:
        await RollingNemesis(cluster, recorder, told.append).run(0.0)  # type: ignore[arg-type]
    assert cluster.restarted == ["n1", "n2", "n3"] and "n2 did not stop in time and was killed" in told
    assert [each.node for each in read(tmp_path / "h.jsonl").faults if each.type == "invoke"] == ["n1", "n2", "n3"]
    with Recorder(tmp_path / "i.jsonl", header(1, {}, {})) as recorder:
        await RollingNemesis(cluster, recorder).run(60.0, rounds=2)  # type: ignore[arg-type]
    assert cluster.restarted == ["n1", "n2", "n3"] * 3
