"""What is still to be moved: from the replicas as they are to the replicas as they should be. Pure; the driver carries it out.

Laws: a replica moves only for a reason (`Why`), and a shard keeps every holder that may stay. After a repair or a drain nothing
else has moved. A rebalance moves the fewest replicas that bring all loads within one of each other; the ring's preference
lists decide which ones. Zones win over balance. The same map gives the same plan everywhere, and a plan made while some of its
moves are under way or done holds just the others, so it may be made anew at any moment.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from cluster.limits import DEFAULT
from cluster.membership.state import MAY_HOLD, MemberState, state_of
from cluster.ring.balance import Holding, Preferred, balance, leaders, spread_zones
from cluster.ring.shard_map import LEARNER, LEAVING, changing, data_shards
from cluster.types import META_SHARD
from proto.gen.meta_pb2 import Shard, ShardMap


class Why(StrEnum):
    """In the order in which moves are made."""

    REPAIR = "repair"  # its node is down, or a replica is missing
    REBUILD = "rebuild"  # it is quarantined
    DRAIN = "drain"  # its node leaves
    META = "meta"  # meta is to have more replicas, or fewer
    REBALANCE = "rebalance"


@dataclass(frozen=True, slots=True)
class Move:
    """A new replica on `to` in the place of replica `replaces` on `source`; without `replaces` (0) a further one; without `to` ("")
    one less."""

    shard: int
    replaces: int
    source: str
    to: str
    why: Why


@dataclass(frozen=True, slots=True)
class Plan:
    """`moves` in the order in which to make them. `stuck` says what cannot be done with the members there are, "" for nothing. `orders`
    are the nodes, the preferred leader first, of each shard that is to prefer another leader once it has moved."""

    moves: list[Move]
    stuck: str
    orders: dict[int, list[str]]


def meta_size(may_hold: int, down: int) -> int:
    """How many replicas meta should have: five from five members on that may hold one, else three, or as many as there are. A member
    that is down does not make it smaller than three: nothing would be gained."""
    return 5 if may_hold >= 5 else min(3, may_hold + down)


class Planner:
    """Makes plans. Keeps the ring as long as its members stay the same."""

    def __init__(self, *, virtual_nodes: int = DEFAULT.virtual_nodes) -> None:
        self._virtual_nodes = virtual_nodes
        self._preferred: Preferred | None = None

    def plan(
        self, shard_map: ShardMap, quarantined: Collection[tuple[int, int]] = (), *, rebalance: bool | None = None
    ) -> Plan:
        """What is still to be done, as if the changes under way were over. `quarantined` are (shard, replica id);
        `rebalance` overrides the map's own word."""
        wanted = shard_map.rebalancing if rebalance is None else rebalance
        return self._planning(shard_map, quarantined).run(rebalance=wanted)

    def target(self, shard_map: ShardMap) -> list[list[str]]:
        """The nodes that should hold each shard, meta first; the preferred leader first: where a rebalance ends."""
        planning = self._planning(shard_map, ())
        orders = planning.run(rebalance=True).orders
        return [orders.get(shard, list(nodes)) for shard, nodes in planning.holding.of.items()]

    def _planning(self, shard_map: ShardMap, quarantined: Collection[tuple[int, int]]) -> _Planning:
        able = [each.node for each in shard_map.members if state_of(each) in MAY_HOLD]
        key = (able, data_shards(shard_map), shard_map.replication_factor)
        if self._preferred is None or self._preferred.made_for != key:
            self._preferred = Preferred(*key, virtual_nodes=self._virtual_nodes)
        return _Planning(shard_map, quarantined, Holding(shard_map, able, self._preferred))


def under_way(shard_map: ShardMap) -> list[Move]:
    """The changes that have begun. Why is concluded from the row, which does not say it."""
    states = {each.node: state_of(each) for each in shard_map.members}
    return [_under_way(shard, states) for shard in shard_map.shards if changing(shard)]


def _under_way(shard: Shard, states: dict[str, MemberState]) -> Move:
    to = next((each.node for each in shard.replicas if each.stage == LEARNER), "")
    old = next((each for each in shard.replicas if each.stage == LEAVING), None)
    source = old.node if old is not None else ""
    if source and source == to:
        why = Why.REBUILD
    elif states.get(source) is MemberState.LEAVING:
        why = Why.DRAIN
    elif states.get(source) is MemberState.DOWN:
        why = Why.REPAIR
    elif source and to:
        why = Why.REBALANCE
    else:
        why = Why.META if shard.id == META_SHARD else Why.REPAIR
    return Move(shard.id, old.id if old is not None else 0, source, to, why)


class _Planning:
    """One plan in the making."""

    def __init__(self, shard_map: ShardMap, quarantined: Collection[tuple[int, int]], holding: Holding) -> None:
        self._map = shard_map
        self._states = {each.node: state_of(each) for each in shard_map.members}
        self._quarantined = quarantined
        self.holding = holding
        self._moves: list[Move] = []
        self._stuck: dict[str, None] = {}

    def run(self, *, rebalance: bool) -> Plan:
        data = range(1, len(self._map.shards))
        self._plan_meta()
        for shard in data:
            self._replace(shard, MemberState.DOWN, Why.REPAIR)
            self._fill(shard)
        for shard in (META_SHARD, *data):
            self._rebuild(shard)
        for shard in data:
            self._replace(shard, MemberState.LEAVING, Why.DRAIN)
            self._shrink(shard)
        orders: dict[int, list[str]] = {}
        if rebalance:
            for moved in (*spread_zones(self.holding), *balance(self.holding)):
                self._moves.append(Move(*moved, Why.REBALANCE))
            orders = leaders(self.holding)
        self._moves.sort(key=lambda move: list(Why).index(move.why))
        return Plan(self._moves, "; ".join(self._stuck), orders)

    def _plan_meta(self) -> None:
        """Meta is on the first members in the order of joining, but keeps the holders that it has."""
        holding, held = self.holding, self.holding.of[META_SHARD]
        down = sum(state is MemberState.DOWN for state in self._states.values())
        wanted = meta_size(len(holding.able), down)
        leavers = [*self._bad(held, MemberState.DOWN), *self._bad(held, MemberState.LEAVING)]
        for node in dict.fromkeys((*leavers, *reversed(self._joined(held)))):
            if len(held) > wanted:
                self._go(META_SHARD, node, "", self._reason(node, Why.META))
        self._replace(META_SHARD, MemberState.DOWN, Why.REPAIR)
        self._replace(META_SHARD, MemberState.LEAVING, Why.DRAIN)
        while len(held) < min(wanted, len(holding.able)):
            self._come(META_SHARD, self._first_joined(held), Why.META)

    def _joined(self, nodes: Collection[str]) -> list[str]:
        return [each.node for each in self._map.members if each.node in nodes]

    def _first_joined(self, held: Collection[str]) -> str:
        free = [node for node in self._joined(self.holding.able) if node not in held]
        return next((node for node in free if self._states[node] is MemberState.UP), free[0] if free else "")

    def _bad(self, held: Collection[str], state: MemberState) -> list[str]:
        return [node for node in held if self._states[node] is state]

    def _reason(self, node: str, otherwise: Why) -> Why:
        return {MemberState.DOWN: Why.REPAIR, MemberState.LEAVING: Why.DRAIN}.get(self._states[node], otherwise)

    def _replace(self, shard: int, state: MemberState, why: Why) -> None:
        """Every replica on a member in that state goes to another."""
        held = self.holding.of[shard]
        for node in self._bad(held, state):
            to = self.holding.pick(shard, node) if shard != META_SHARD else self._first_joined(held)
            if to:
                self._go(shard, node, to, why)
            else:
                self._stuck[f"{node} is {state.word}, and no other member can take its replicas"] = None

    def _fill(self, shard: int) -> None:
        held = self.holding.of[shard]
        while len(held) < self._map.replication_factor:
            to = self.holding.pick(shard, "")
            if not to:
                self._stuck["there are too few members for all replicas"] = None
                return
            self._come(shard, to, Why.REPAIR)

    def _rebuild(self, shard: int) -> None:
        held = self.holding.of[shard]
        for node, number in list(held.items()):
            if (shard, number) not in self._quarantined or self._states[node] not in MAY_HOLD:
                continue
            if len(held) == 1:
                self._stuck[f"shard {shard}: its only replica, on {node}, is quarantined"] = None
            else:
                self._go(shard, node, node, Why.REBUILD)

    def _shrink(self, shard: int) -> None:
        held = self.holding.of[shard]
        while len(held) > self._map.replication_factor:
            fullest = max(held, key=lambda node: self.holding.load[node])
            self._go(shard, fullest, "", self._reason(fullest, Why.REBALANCE))

    def _come(self, shard: int, to: str, why: Why) -> None:
        self.holding.move(shard, "", to)
        self._moves.append(Move(shard, 0, "", to, why))

    def _go(self, shard: int, source: str, to: str, why: Why) -> None:
        replaced = self.holding.move(shard, source, to)
        self._moves.append(Move(shard, replaced, source, to, why))
