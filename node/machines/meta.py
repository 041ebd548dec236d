"""The meta machine of shard 0: the members and the shard map.

Laws: there is one first map for ever, and each change of the map raises its epoch by one, and the version of the shard it
concerns; a command that changes nothing leaves both alone; one that is refused has changed nothing. Members live as
cluster/membership says, and the replicas of a shard change as cluster/ring/shard_change.py says. Nothing goes to the feed: a watch tells
changes of keys, and the map has a watch of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import DEFAULT, Limits
from cluster.membership.state import MemberState, lawful, state_of
from cluster.ports import ReadView, View
from cluster.ring import shard_change
from cluster.ring.shard_map import LEARNER, LEAVING, VOTER, validate, validate_shard
from node.machines.machine import Stamp
from proto.gen.meta_pb2 import (
    AddReplica,
    JoinMember,
    Member,
    MetaAnswer,
    MetaCommand,
    MetaQuery,
    MetaResult,
    RetireReplica,
    SetRebalancing,
    SetState,
    SettleShard,
    Shard,
    ShardMap,
)

_MAP_KEY = b"map"


class MetaMachine:
    name = "meta"

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._map: ShardMap | None = None
        self._changes: dict[str, Callable[[ShardMap, Any], bool | int]] = {
            "set_member": _set_member,
            "join": self._join,
            "set_state": _set_state,
            "remove_member": self._remove_member,
            "add_replica": _add_replica,
            "retire_replica": _retire_replica,
            "settle": _settle,
            "set_rebalancing": _set_rebalancing,
        }

    @property
    def map(self) -> ShardMap | None:
        """The present map, None before the bootstrap. Not to be changed."""
        return self._map

    def load(self, view: View) -> None:
        stored = view.get(_MAP_KEY)
        self._map = ShardMap.FromString(stored) if stored is not None else None

    def parse(self, body: bytes) -> MetaCommand:
        return MetaCommand.FromString(body)

    def apply(self, command: MetaCommand, stamp: Stamp, view: View) -> MetaResult:
        which = command.WhichOneof("command")
        assert which is not None, "a service checked it"
        if which == "bootstrap":
            if self._map is not None:
                raise TenfoldError(Code.ALREADY_EXISTS, f"there is a map, of epoch {self._map.epoch}")
            return self._store(command.bootstrap, view)
        if self._map is None:
            raise invalid(which, "there is no map yet")
        # A copy: the map that was given out does not change, and a refusal leaves nothing behind.
        changed = ShardMap.FromString(self._map.SerializeToString())
        changed.epoch += 1
        done = self._changes[which](changed, getattr(command, which))
        if not done:
            return MetaResult(epoch=self._map.epoch)
        result = self._store(changed, view)
        if which == "add_replica":
            result.replica = done
        return result

    def _join(self, changed: ShardMap, command: JoinMember) -> bool:
        told = command.member
        if told.node in changed.removed:
            raise invalid("join.node", f"{told.node!r} was a member and is removed; a name is not given again")
        for present in changed.members:
            if present.node == told.node:
                return _move(present, told) or command.lost
        if len(changed.members) >= self._limits.nodes_max:
            raise invalid("join.node", f"there are {len(changed.members)} members, at most {self._limits.nodes_max}")
        new = Member(node=told.node, address=told.address, zone=told.zone, state=Member.JOINING)
        changed.members.append(new)
        return True

    def _remove_member(self, changed: ShardMap, node: str) -> bool:
        """Of a member that holds nothing: it leaves and is gone in one step."""
        if node in changed.removed:
            return False
        _member(changed, node, "remove_member")
        held = sum(replica.node == node for shard in changed.shards for replica in shard.replicas)
        if held:
            raise TenfoldError(Code.MEMBER_BUSY, f"remove_member: {node!r} holds {held} replicas, must be 0; drain it")
        _check_enough(changed, node, "remove_member")
        kept = [member for member in changed.members if member.node != node]
        names = [*changed.removed, node]
        del changed.members[:], changed.removed[:]
        changed.members.extend(kept)
        changed.removed.extend(names[-self._limits.removed_names_max :])  # the oldest is forgotten
        return True

    # -- the map -------------------------------------------------------------------------------------------------------

    def _store(self, changed: ShardMap, view: View) -> MetaResult:
        # A copy: the command belongs to whoever proposed it.
        self._map = ShardMap()
        self._map.CopyFrom(changed)
        view.put(_MAP_KEY, changed.SerializeToString(deterministic=True))
        return MetaResult(epoch=changed.epoch)

    def query(self, request: MetaQuery, view: ReadView, now_ms: int) -> MetaAnswer:
        return MetaAnswer(map=self._map)

    def pulse_due(self, view: ReadView, now_ms: int) -> bool:
        return False

    def pulse(self, stamp: Stamp, view: View) -> None:
        """Nothing here expires."""

    def check_invariants(self, view: ReadView) -> None:
        pairs = list(view.scan(b"", b""))
        assert [key for key, _ in pairs] == ([_MAP_KEY] if self._map is not None else []), (
            "the view holds the map alone"
        )
        if self._map is not None:
            assert ShardMap.FromString(pairs[0][1]) == self._map, "the map in memory is the map in the view"
            try:
                validate(self._map, limits=self._limits)
            except ValueError as broken:
                raise AssertionError(f"the map keeps its laws: {broken}") from None
            for shard in self._map.shards:
                under_way = [replica.stage for replica in shard.replicas if replica.stage != VOTER]
                assert under_way.count(LEARNER) <= 1 and under_way.count(LEAVING) <= 2, "one change per shard at a time"


def _set_member(changed: ShardMap, told: Member) -> bool:
    return _move(_member(changed, told.node, "set_member.node"), told)


def _set_state(changed: ShardMap, command: SetState) -> bool:
    present = _member(changed, command.node, "set_state.node")
    old, new = state_of(present), MemberState(command.state)
    if old == new:
        return False
    if not lawful(old, new):
        raise invalid("set_state.state", f"{command.node!r} is {old.word} and cannot become {new.word}")
    if new is MemberState.LEAVING:
        _check_enough(changed, command.node, "set_state.state")
    present.state = command.state
    return True


def _set_rebalancing(changed: ShardMap, command: SetRebalancing) -> bool:
    different = changed.rebalancing != command.on
    changed.rebalancing = command.on
    return different


def _add_replica(changed: ShardMap, command: AddReplica) -> int:
    """The id of the new one."""
    shard = _shard(changed, command.shard, "add_replica.shard")
    shard_change.check_version(shard, command.version)
    if _member(changed, command.node, "add_replica.node").state == Member.LEAVING:
        raise invalid("add_replica.node", f"{command.node!r} is leaving and gets no new replicas")
    new = shard_change.add(shard, command, changed.epoch)
    _raise_version(changed, shard)
    return new


def _retire_replica(changed: ShardMap, command: RetireReplica) -> bool:
    shard = _shard(changed, command.shard, "retire_replica.shard")
    done = shard_change.retire(shard, command)
    if done:
        _raise_version(changed, shard)
    return done


def _settle(changed: ShardMap, command: SettleShard) -> bool:
    shard = _shard(changed, command.shard, "settle.shard")
    done = shard_change.settle(shard, command)
    if done:
        _raise_version(changed, shard)
    return done


def _member(changed: ShardMap, node: str, field: str) -> Member:
    for present in changed.members:
        if present.node == node:
            return present
    raise invalid(field, f"{node!r} is not a member")


def _move(present: Member, told: Member) -> bool:
    """A known member's address and zone; its state stays."""
    moved = (present.address, present.zone) != (told.address, told.zone)
    present.address, present.zone = told.address, told.zone
    return moved


def _check_enough(changed: ShardMap, leaving: str, field: str) -> None:
    """Each shard needs as many members that stay as it has replicas."""
    left = sum(member.node != leaving and member.state != Member.LEAVING for member in changed.members)
    if left < changed.replication_factor:
        raise invalid(
            field,
            f"without {leaving!r} {left} members stay, must be at least {changed.replication_factor} for as many replicas",
        )


def _shard(changed: ShardMap, number: int, field: str) -> Shard:
    if number >= len(changed.shards):
        raise invalid(field, f"{number}, must be 0 to {len(changed.shards) - 1}")
    return changed.shards[number]


def _raise_version(changed: ShardMap, shard: Shard) -> None:
    shard.version += 1
    validate_shard(shard, {member.node for member in changed.members}, changed.epoch)
