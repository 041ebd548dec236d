"""Where a key belongs and which nodes should hold its shard.

The 64-bit hash circle is cut into equal arcs, the shards. Each node owns many virtual nodes on the same circle; a shard's
preference list is the walk clockwise from the start of its arc (Karger et al. 1997; Dynamo 2007, section 4.2), with the load of
every node bounded (Mirrokni, Thorup, Zadimoghaddam 2016). The law: the same members, shards and factor give the same lists
everywhere and always, and the way a key is hashed never changes, since data lies on disk by it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from xxhash import xxh3_64_intdigest

from cluster.limits import DEFAULT

CIRCLE = 1 << 64


def routing_key(key: bytes) -> bytes:
    """The part of `key` that places it: what is inside the first `{` and the next `}`, if not empty, else all of it."""
    start = key.find(b"{")
    if start < 0:
        return key
    end = key.find(b"}", start + 1)
    return key[start + 1 : end] if end > start + 1 else key


def shard_of(key: bytes, shards: int) -> int:
    """The data shard (1..shards) that `key` lies in."""
    return 1 + (xxh3_64_intdigest(routing_key(key)) * shards >> 64)


def arc(shard: int, shards: int) -> tuple[int, int]:
    """The hashes of data shard `shard`: low <= hash < high; the last arc ends at 2**64. ValueError outside 1..shards."""
    if not 1 <= shard <= shards:
        raise ValueError(f"shard: {shard} is not in 1..{shards}")
    return -(-(shard - 1) * CIRCLE // shards), -(-shard * CIRCLE // shards)


def load_bound(nodes: int, shards: int, replicas: int) -> int:
    """The most replicas a node may hold: ceil(1.1 x the average)."""
    return -(-11 * shards * replicas // (10 * nodes))


class Ring:
    """The virtual nodes of a set of nodes, and the preference lists of `shards` data shards on them.

    `zones` maps each node to its zone; a node without one ("") is a zone of its own.
    """

    def __init__(self, zones: Mapping[str, str], shards: int, *, virtual_nodes: int = DEFAULT.virtual_nodes) -> None:
        if not zones:
            raise ValueError("nodes: a ring needs at least one")
        if shards < 1 or virtual_nodes < 1:
            raise ValueError(f"shards and virtual_nodes must be positive, not {shards} and {virtual_nodes}")
        self.shards = shards
        # a label is told from a node's own name by its kind, so a zone called "n1" is not node n1
        self._zone = {node: ("zone", zone) if zone else ("node", node) for node, zone in zones.items()}
        points = [(xxh3_64_intdigest(f"{node}#{i}".encode()), node) for node in zones for i in range(virtual_nodes)]
        self._points = sorted(points)
        self._lists: dict[int, list[list[str]]] = {}

    def walk(self, position: int) -> Iterator[str]:
        """Every node once, in the order in which its first virtual node is met clockwise from `position`."""
        start = bisect_left(self._points, (position, ""))
        seen: set[str] = set()
        for _, node in self._points[start:] + self._points[:start]:
            if node not in seen:
                seen.add(node)
                yield node

    def preference_list(self, shard: int, replicas: int) -> list[str]:
        """The nodes that should hold data shard `shard`, the preferred leader first. ValueError if there are too few nodes."""
        arc(shard, self.shards)
        return list(self.preference_lists(replicas)[shard - 1])

    def preference_lists(self, replicas: int) -> list[list[str]]:
        """The lists of shards 1..shards. They are made together, because the load is bounded over all of them."""
        if not 1 <= replicas <= len(self._zone):
            raise ValueError(f"replicas: {replicas} is not in 1..{len(self._zone)}, the number of nodes")
        if replicas not in self._lists:
            self._lists[replicas] = _Placement(self._zone, load_bound(len(self._zone), self.shards, replicas)).fill(
                [list(self.walk(arc(shard, self.shards)[0])) for shard in range(1, self.shards + 1)], replicas
            )
        return self._lists[replicas]


class _Placement:
    """One filling of all shards: zones first, then the bound, then the order of the walk."""

    def __init__(self, zone: Mapping[str, tuple[str, str]], bound: int) -> None:
        self._zone = zone
        self._bound = bound
        self._load: Counter[str] = Counter()
        self._lists: list[list[str]] = []

    def fill(self, walks: list[list[str]], replicas: int) -> list[list[str]]:
        for walk in walks:
            chosen: list[str] = []
            for _ in range(replicas):
                node = self._pick(walk, chosen)
                chosen.append(node)
                self._load[node] += 1
            self._lists.append(chosen)
        assert all(len(set(chosen)) == replicas for chosen in self._lists), "a shard's replicas are on distinct nodes"
        return self._spread_leaders(walks)

    def _pick(self, walk: list[str], chosen: list[str]) -> str:
        """The next node for a shard that has `chosen`."""
        used = Counter(self._zone[node] for node in chosen)
        others = [node for node in walk if node not in chosen]
        fewest = min(used[self._zone[node]] for node in others)
        fitting = [node for node in others if used[self._zone[node]] == fewest]
        for node in fitting:
            if self._load[node] < self._bound:
                return node
        for node in fitting:
            if self._relieve(node, walk):
                return node
        return min(fitting, key=self._load.__getitem__)  # zones win over balance

    def _relieve(self, full: str, walk: list[str]) -> bool:
        """Moves one replica from `full` to a node with room, in the latest shard where that keeps the zones.

        Without zones one always exists: the nodes with room are in this shard already, so `full` is in more of the
        shards before than they are.
        """
        roomy = [node for node in walk if self._load[node] < self._bound]
        for chosen in reversed(self._lists):
            if full not in chosen:
                continue
            used = Counter(self._zone[node] for node in chosen)
            for node in roomy:
                same_zone = self._zone[node] == self._zone[full]
                if node not in chosen and (same_zone or used[self._zone[node]] < used[self._zone[full]]):
                    chosen[chosen.index(full)] = node
                    self._load[full] -= 1
                    self._load[node] += 1
                    return True
        return False

    def _spread_leaders(self, walks: list[list[str]]) -> list[list[str]]:
        """Puts first in each list the node that is first in the fewest so far; the others stay in the order of the walk."""
        leads: Counter[str] = Counter()
        spread: list[list[str]] = []
        for walk, chosen in zip(walks, self._lists, strict=True):
            ordered = [node for node in walk if node in chosen]
            leader = min(ordered, key=leads.__getitem__)
            leads[leader] += 1
            spread.append([leader, *(node for node in ordered if node != leader)])
        return spread
