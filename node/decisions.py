"""What the placement driver does next: from the map, the plan and what the nodes say, the commands for meta. Pure.

Laws: nothing is remembered between two looks, so a driver may die at any moment and another goes on. Each command holds for one
version of its shard's row. A change begins only where a majority of the shard's voters answers and is well, and a voter that is well is
retired without a successor only where all others are; so there are never fewer than a quorum of good copies. Changes are bounded: `moves_max` shards at
a time, `moves_per_node_max` learners on a node, one change a shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.limits import Limits
from cluster.membership.state import MemberState, state_of
from cluster.ring.placement import Move, Plan, Why, under_way
from cluster.ring.shard_map import LEARNER, LEAVING, changing, replica_on, voters
from proto.gen.meta_pb2 import (
    AddReplica,
    MetaCommand,
    RetireReplica,
    SetRebalancing,
    SettleShard,
    Shard,
    ShardMap,
)
from proto.gen.node_pb2 import ReplicaStatus, StatusReply

REASONS_MAX = 3
"""So many are told; the rest is counted."""

GONE = frozenset((MemberState.DOWN, MemberState.LEAVING))
"""Where a learner has no future."""


class Answers:
    """What the nodes that answered say of their replicas."""

    def __init__(self, shard_map: ShardMap, replies: Iterable[StatusReply]) -> None:
        self.nodes: set[str] = set()
        self.well: set[tuple[int, int]] = set()
        self.quarantined: set[tuple[int, int]] = set()
        self._leaders: dict[int, ReplicaStatus] = {}
        self._terms: Counter[int] = Counter()
        for reply in replies:
            self.nodes.add(reply.node)
            for row in reply.replicas:
                if row.shard < len(shard_map.shards):
                    self._hear(row, row.replica or replica_on(shard_map, row.shard, reply.node) or 0)

    def _hear(self, row: ReplicaStatus, replica: int) -> None:
        if row.role == "quarantined":
            self.quarantined.add((row.shard, replica))
            return
        self.well.add((row.shard, replica))
        self._terms[row.shard] = max(self._terms[row.shard], row.term)
        if row.role == "leader" and row.term >= self._terms[row.shard]:
            self._leaders[row.shard] = row

    def leader(self, shard: int) -> ReplicaStatus | None:
        """The row of the shard's leader, unless somebody has seen a later term: then it may have been deposed."""
        row = self._leaders.get(shard)
        return row if row is not None and row.term == self._terms[shard] else None


@dataclass(slots=True)
class Decision:
    """`commands` for meta, in order; `moving` has begun, `waiting` has not; `stuck` says what holds it up, "" if nothing does but the bounds."""

    commands: list[MetaCommand] = field(default_factory=list)
    moving: list[Move] = field(default_factory=list)
    waiting: list[Move] = field(default_factory=list)
    stuck: str = ""

    @property
    def settled(self) -> bool:
        return not (self.commands or self.moving or self.waiting)


def decide(shard_map: ShardMap, plan: Plan, answers: Answers, limits: Limits) -> Decision:
    """`plan` is that of `shard_map`, with what the answers say is quarantined."""
    deciding = _Deciding(shard_map, answers, limits)
    for shard in shard_map.shards:
        if changing(shard):
            deciding.settle_or_give_up(shard)
    for move in plan.moves:
        deciding.start(move)
    for number, nodes in plan.orders.items():
        deciding.order(shard_map.shards[number], nodes)
    rebalancing = [move for move in plan.moves if move.why is Why.REBALANCE]
    if shard_map.rebalancing and not (rebalancing or plan.orders or deciding.moving):
        deciding.commands.append(MetaCommand(set_rebalancing=SetRebalancing(on=False)))
    reasons = [plan.stuck] if plan.stuck else []
    found = list(deciding.reasons)
    reasons += found[:REASONS_MAX]
    if len(found) > REASONS_MAX:
        reasons.append(f"and {len(found) - REASONS_MAX} more reasons")
    return Decision(deciding.commands, deciding.moving, plan.moves, "; ".join(reasons))


class _Deciding:
    def __init__(self, shard_map: ShardMap, answers: Answers, limits: Limits) -> None:
        self._map = shard_map
        self._answers = answers
        self._limits = limits
        self._states = {each.node: state_of(each) for each in shard_map.members}
        self.moving = under_way(shard_map)
        self.commands: list[MetaCommand] = []
        self.reasons: dict[str, None] = {}
        self._changing = {move.shard for move in self.moving}
        self._learners = Counter(move.to for move in self.moving if move.to)

    def settle_or_give_up(self, shard: Shard) -> None:
        """Writes down what the group has reached; gives a learner up whose node is gone or whose storage is corrupt."""
        leader = self._answers.leader(shard.id)
        if leader is None:
            self.reasons[f"shard {shard.id} has no leader that answers"] = None
            return
        reached = leader.configuration_applied and not leader.outgoing and leader.configuration_version >= shard.version
        if reached and _would_change(shard, leader):
            settle = SettleShard(
                shard=shard.id, version=shard.version, voters=leader.voters, learners=_known(shard, leader.learners)
            )
            self.commands.append(MetaCommand(settle=settle))
            return
        learner = next((each for each in shard.replicas if each.stage == LEARNER), None)
        if learner is None:
            self._keep(shard, leader)
            return
        if learner.id in leader.voters:
            return
        if self._states[learner.node] in GONE or (shard.id, learner.id) in self._answers.quarantined:
            retire = RetireReplica(shard=shard.id, version=shard.version, replica=learner.id)
            self.commands.append(MetaCommand(retire_replica=retire))

    def _keep(self, shard: Shard, leader: ReplicaStatus) -> None:
        """A voter that was to go without a successor stays, where the others have become too few: they could not take the step."""
        leaving = [each.id for each in shard.replicas if each.stage == LEAVING]
        voting = {each.id for each in voters(shard)}
        well = sum((shard.id, number) in self._answers.well for number in voting)
        if len(leaving) == 1 and leaving[0] in leader.voters and not leader.outgoing and 2 * well <= len(voting):
            undo = RetireReplica(shard=shard.id, version=shard.version, replica=leaving[0], undo=True)
            self.commands.append(MetaCommand(retire_replica=undo))

    def start(self, move: Move) -> None:
        """Begins a move if nothing speaks against it."""
        if len(self._changing) >= self._limits.moves_max or move.shard in self._changing:
            return
        if move.to and self._learners[move.to] >= self._limits.moves_per_node_max:
            return
        shard = self._map.shards[move.shard]
        problem = self._problem(shard, move)
        if problem:
            self.reasons[problem] = None
            return
        self._changing.add(move.shard)
        if move.to:
            self._learners[move.to] += 1
            add = AddReplica(shard=shard.id, version=shard.version, node=move.to, replaces=move.replaces)
            self.commands.append(MetaCommand(add_replica=add))
        else:
            retire = RetireReplica(shard=shard.id, version=shard.version, replica=move.replaces)
            self.commands.append(MetaCommand(retire_replica=retire))

    def _problem(self, shard: Shard, move: Move) -> str:
        """Why a move cannot begin now; "" if it can."""
        answers = self._answers
        if move.to and (move.to not in answers.nodes or self._states[move.to] is not MemberState.UP):
            return f"{move.to} does not answer"
        leader = answers.leader(shard.id)
        if leader is None:
            return f"shard {shard.id} has no leader that answers"
        voting = {each.id for each in voters(shard)}
        if leader.outgoing or set(leader.voters) != voting:
            return f"shard {shard.id}: its group is not yet as the map says"
        well = {number for number in voting if (shard.id, number) in answers.well}
        if 2 * len(well) <= len(voting):
            return f"shard {shard.id}: only {len(well)} of {len(voting)} voters are well"
        if not move.to:
            others = voting - {move.replaces}
            sound = well >= others if move.replaces in well else 2 * len(well) > len(others)
            if not sound:
                return f"shard {shard.id}: only {len(well)} of {len(voting)} voters are well, and one is to go without a successor"
        return ""

    def order(self, shard: Shard, nodes: list[str]) -> None:
        """A new preference order, once the shard is where it should be: nothing moves but leadership."""
        by_node = {each.node: each.id for each in voters(shard)}
        if shard.id in self._changing or set(by_node) != set(nodes):
            return
        ids = [by_node[node] for node in nodes]
        settle = SettleShard(shard=shard.id, version=shard.version, voters=ids, order=ids)
        self.commands.append(MetaCommand(settle=settle))


def _would_change(shard: Shard, leader: ReplicaStatus) -> bool:
    present = {*leader.voters, *leader.learners}
    return any(
        (each.stage == LEARNER and each.id in leader.voters) or (each.stage == LEAVING and each.id not in present)
        for each in shard.replicas
    )


def _known(shard: Shard, ids: Iterable[int]) -> list[int]:
    listed = {each.id for each in shard.replicas}
    return [number for number in ids if number in listed]
