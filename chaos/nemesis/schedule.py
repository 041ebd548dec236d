"""When to kill and whom to look for: drawn from a seed, as data, before the run.

The same seed gives the same plan. Which node a plan hits is decided when it is due, from who leads then, and only among
nodes whose loss leaves every replica set a majority.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

FIRST_S = 1.0
INTERVAL_S = (1.5, 2.1)
DOWN_S = (0.1, 0.4)
LEADER_SHARE = 0.6

ReplicaSets = Mapping[int, frozenset[str]]
"""Shard (0 is meta) to the nodes that hold it."""


class PlannedKill(NamedTuple):
    """`at_s` counts from the start of the run, `down_s` from the kill. `draw`, in [0, 1), picks among what is possible then."""

    at_s: float
    target: Literal["leader", "node"]
    draw: float
    down_s: float


def plan(seed: int, duration_s: float) -> Iterator[PlannedKill]:
    """The kills of a run, in order. A kill that has to wait for a node to recover comes late, and none is left out."""
    chance = random.Random(seed)
    at_s = FIRST_S
    while at_s < duration_s:
        target: Literal["leader", "node"] = "leader" if chance.random() < LEADER_SHARE else "node"
        yield PlannedKill(at_s, target, chance.random(), chance.uniform(*DOWN_S))
        at_s += chance.uniform(*INTERVAL_S)


def keeps_majorities(replica_sets: ReplicaSets, down: Collection[str]) -> bool:
    """Whether every replica set has a majority outside `down`."""
    return all(2 * sum(node in down for node in nodes) < len(nodes) for nodes in replica_sets.values())


def choose(
    planned: PlannedKill, replica_sets: ReplicaSets, leaders: Mapping[int, str], down: Collection[str]
) -> str | None:
    """The node this plan hits now; None while no node may be killed. A leader is the leader of a shard drawn at random,
    so the busiest leader is the likeliest."""
    nodes = sorted({node for nodes in replica_sets.values() for node in nodes})
    allowed = [node for node in nodes if node not in down and keeps_majorities(replica_sets, {*down, node})]
    led = [leader for _, leader in sorted(leaders.items()) if leader in allowed]
    candidates = led if planned.target == "leader" and led else allowed
    return candidates[int(planned.draw * len(candidates))] if candidates else None


def busiest(leaders: Mapping[int, str]) -> str:
    """The node that leads most shards; the first by name among equals."""
    counts = Counter(leaders.values())
    return min(counts, key=lambda node: (-counts[node], node))
