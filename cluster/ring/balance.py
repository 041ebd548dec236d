"""Who holds what, and how little has to move until zones and loads are as even as they can be.

Laws: each step makes the placement strictly better, first in zones, then in loads, so it ends; a replica that has no id yet, being
planned only, does not move again. Loads count the replicas of data shards. Where two choices are as good the ring's lists decide, then
the order of joining and the shard's number.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice

from cluster.membership.state import MemberState, state_of
from cluster.ring.ring import Ring, arc, load_bound
from cluster.ring.shard_map import data_shards, staying
from cluster.types import META_SHARD
from proto.gen.meta_pb2 import ShardMap

Moved = tuple[int, int, str, str]
"""Shard, the replica that goes, its node, the node that gets one."""


class Preferred:
    """The nodes that the ring's walk meets first for each shard: a walk is only taken where it is asked for."""

    def __init__(self, able: Sequence[str], shards: int, replicas: int, *, virtual_nodes: int) -> None:
        self.made_for = (list(able), shards, replicas)
        self._ring = Ring(dict.fromkeys(able, ""), shards, virtual_nodes=virtual_nodes) if able else None
        self._replicas = replicas
        self._shards = shards
        self._lists: dict[int, list[str]] = {}

    def __call__(self, shard: int, node: str) -> bool:
        if shard not in self._lists and self._ring is not None:
            walk = self._ring.walk(arc(shard, self._shards)[0])
            self._lists[shard] = list(islice(walk, self._replicas))
        return node in self._lists.get(shard, ())


class Holding:
    """`of` is shard -> node -> replica id in preference order, as it will be when the changes under way and all planned ones are
    over; the id is 0 for a replica yet to come. `able` are the members that may hold replicas, in the order of joining."""

    def __init__(self, shard_map: ShardMap, able: Sequence[str], prefers: Preferred) -> None:
        self.able = list(able)
        self.of = {shard.id: {each.node: each.id for each in staying(shard)} for shard in shard_map.shards}
        self.data = range(1, data_shards(shard_map) + 1)
        self.load = Counter(node for shard in self.data for node in self.of[shard])
        self.prefers = prefers
        self._zone = {each.node: (bool(each.zone), each.zone or each.node) for each in shard_map.members}
        self._up = {each.node for each in shard_map.members if state_of(each) is MemberState.UP}
        self._bound = load_bound(max(1, len(self.able)), len(self.data), shard_map.replication_factor)
        self._rank = {node: number for number, node in enumerate(self.able)}

    def move(self, shard: int, source: str, to: str) -> int:
        """Takes `source` out and `to` in, in its place; either may be "". The id of the one that goes."""
        held = self.of[shard]
        replaced = held.get(source, 0)
        rows = [(to, 0) if node == source else (node, number) for node, number in held.items()]
        if not source:
            rows.append((to, 0))
        held.clear()
        held.update((node, number) for node, number in rows if node)
        if shard != META_SHARD:
            self.load[source] -= 1
            self.load[to] += 1
        return replaced

    def on(self, node: str) -> list[int]:
        """The data shards that it holds."""
        return [shard for shard in self.data if node in self.of[shard]]

    def pick(self, shard: int, source: str) -> str:
        """The best node to take over the replica on `source`, or a further one if that is ""; "" where there is none."""
        held = self.of[shard]
        used = Counter(self._zone[node] for node in held if node != source)
        free = [node for node in self.able if node not in held]
        return min(
            free,
            key=lambda node: (
                used[self._zone[node]],
                node not in self._up,
                self.load[node] >= self._bound,
                self.load[node],
                not self.prefers(shard, node),
                self._rank[node],
            ),
            default="",
        )

    def zone_gain(self, shard: int, source: str, to: str) -> int:
        """By how much the zone of `source` is used more than that of `to` by the others of the shard: 0 keeps the zones as good as they
        are, more makes them better."""
        used = Counter(self._zone[node] for node in self.of[shard] if node != source)
        return used[self._zone[source]] - used[self._zone[to]]

    def crowded(self, shard: int) -> bool:
        """Whether two of its replicas are in one zone."""
        return len({self._zone[node] for node in self.of[shard]}) < len(self.of[shard])

    def by_load(self) -> list[str]:
        """The able nodes, the one with the fewest replicas first."""
        return sorted(self.able, key=lambda node: (self.load[node], self._rank[node]))


def spread_zones(holding: Holding) -> Iterator[Moved]:
    """Moves replicas out of zones that a shard uses more than others."""
    for shard in holding.data:
        while holding.crowded(shard) and (found := _better_zone(holding, shard)) is not None:
            source, to = found
            yield shard, holding.move(shard, source, to), source, to


def _better_zone(holding: Holding, shard: int) -> tuple[str, str] | None:
    held = holding.of[shard]
    best = max(
        (
            (holding.zone_gain(shard, source, to), holding.load[source] - holding.load[to], source, to)
            for source, number in held.items()
            if number and source in holding.able
            for to in holding.able
            if to not in held
        ),
        default=None,
    )
    return (best[2], best[3]) if best is not None and best[0] > 0 else None


def balance(holding: Holding) -> Iterator[Moved]:
    """Moves replicas from the fullest node to the emptiest, as long as a node has two more than another that could take one."""
    while (found := _lighter(holding)) is not None:
        shard, source, to = found
        yield shard, holding.move(shard, source, to), source, to


def _lighter(holding: Holding) -> tuple[int, str, str] | None:
    nodes = holding.by_load()
    for source in reversed(nodes):
        for to in nodes:
            if holding.load[source] - holding.load[to] < 2:
                break
            shards = [
                shard
                for shard in holding.data
                if holding.of[shard].get(source)
                and to not in holding.of[shard]
                and holding.zone_gain(shard, source, to) >= 0
            ]
            if shards:
                best = min(
                    shards, key=lambda each: (not holding.prefers(each, to), holding.prefers(each, source), each)
                )
                return best, source, to
    return None


def leaders(holding: Holding) -> dict[int, list[str]]:
    """The new orders of those shards that should prefer another leader, so that the nodes' counts of preferred leaderships are as close as
    holders allow: a path of shards from the node that leads most to one that leads at least two fewer."""
    order = {shard: list(holding.of[shard]) for shard in holding.data if holding.of[shard]}
    leads = Counter(dict.fromkeys(holding.able, 0))
    leads.update(nodes[0] for nodes in order.values() if nodes[0] in leads)
    while path := _path(order, leads):
        for shard, leader in path:
            leads[order[shard][0]] -= 1
            leads[leader] += 1
            order[shard].remove(leader)
            order[shard].insert(0, leader)
    return {shard: nodes for shard, nodes in order.items() if nodes != list(holding.of[shard])}


def _path(order: dict[int, list[str]], leads: Counter[str]) -> list[tuple[int, str]]:
    """Shards and their new leaders; [] where nothing can be made more even."""
    for first in sorted(leads, key=lambda node: -leads[node]):
        led: dict[str, list[int]] = {}
        for shard, nodes in order.items():
            led.setdefault(nodes[0], []).append(shard)
        came: dict[str, tuple[str, int]] = {first: ("", 0)}
        ahead = deque([first])
        while ahead:
            node = ahead.popleft()
            if leads[first] - leads[node] >= 2:
                path: list[tuple[int, str]] = []
                while node != first:
                    before, shard = came[node]
                    path.append((shard, node))
                    node = before
                return path
            for shard in led.get(node, ()):
                for other in order[shard][1:]:
                    if other in leads and other not in came:
                        came[other] = (node, shard)
                        ahead.append(other)
    return []
