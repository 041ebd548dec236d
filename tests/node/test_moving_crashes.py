"""A move that is interrupted at any stage goes on: by whoever leads then, from what the map and the disks say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.raft.core import RaftCore
from proto.gen import meta_pb2
from tests.node.cluster_world import FAST, ClusterWorld, holds_nothing


def core_of(world: ClusterWorld) -> RaftCore | None:
    leader = world.leader(1)
    return leader.shards.replicas[1].core if leader is not None else None


STAGES: dict[str, Callable[[ClusterWorld, int, str], bool]] = {
    "listed": lambda world, added, leaver: True,
    "begun": lambda world, added, leaver: any(node.shards.replica_of(1) == added for node in world.nodes.values()),
    "follows": lambda world, added, leaver: (
        (core := core_of(world)) is not None and added in core.configuration.members
    ),
    "votes": lambda world, added, leaver: (core := core_of(world)) is not None and added in core.configuration.voters,
    "settled": lambda world, added, leaver: all(each.stage == meta_pb2.Replica.VOTER for each in world.row(1).replicas),
    "dropped": lambda world, added, leaver: holds_nothing(world.nodes[leaver]),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_move_goes_on_after_a_crash_at_any_stage(stage: str) -> None:
    """First of the one that comes, then of the leader, then of all: nothing is lost, and the move comes to its end."""
    limits = replace(FAST, log_entries_kept_max=16, log_bytes_kept_max=4096)  # so that the new one gets a snapshot
    async with asyncio.timeout(120), ClusterWorld(nodes=4, shards=1, limits=limits) as world:
        await world.fill()
        for victims in ("comer", "leader", "all"):
            leaver, target = world.row(1).replicas[-1], world.spare()
            added = await world.add(1, target, leaver.id)
            settling = asyncio.ensure_future(world.settle(1))
            await world.until(lambda: STAGES[stage](world, added, leaver.node), stage)  # noqa: B023
            leader = world.leader(1)
            names = {
                "comer": [target],
                "leader": [leader.config.node] if leader is not None else [],
                "all": list(world.names),
            }[victims]
            await world.crash(names, keep=True)
            for name in names:
                await world.start(name)
            await settling
            await world.until(lambda: holds_nothing(world.nodes[leaver.node]), "the old replica is dropped")  # noqa: B023
            assert world.nodes[target].shards.replica_of(1) == added
            await world.check()
            assert (await world.put(b"last", victims.encode())).code == 0
        for node in world.nodes.values():
            assert not node.shards.quarantined
            for replica in node.shards.replicas.values():
                replica.core.check_invariants()
                replica.applier.check_invariants()
