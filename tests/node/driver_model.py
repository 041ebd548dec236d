"""A cluster in the plainest words, for the driver's decisions: the real meta machine, and for each shard a group whose leader does
what the map wants one lawful step at a time. Nodes stop, come back, die for good; replicas rot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.membership.state import MAY_HOLD, MemberState, lawful, state_of
from cluster.ring.placement import Planner
from cluster.ring.shard_map import LEARNER, LEAVING, VOTER, first_map
from node.decisions import Answers, Decision, decide
from node.machines.machine import Stamp
from node.machines.meta import MetaMachine
from proto.gen.meta_pb2 import JoinMember, Member, MetaCommand, SetState, ShardMap
from proto.gen.node_pb2 import ReplicaStatus, StatusReply


class DictView:
    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.pairs.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted(self.pairs.items(), reverse=reverse)

    def put(self, key: bytes, value: bytes) -> None:
        self.pairs[key] = value

    def delete(self, key: bytes) -> None:
        self.pairs.pop(key, None)


@dataclass
class Group:
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    version: int = 1


class ModelCluster:
    def __init__(self, nodes: int, shards: int, replicas: int, limits: Limits) -> None:
        self.limits = limits
        self.names = [f"n{i}" for i in range(1, nodes + 1)]
        self.up = set(self.names)
        self.dead: set[str] = set()  # for good
        self.view = DictView()
        self.machine = MetaMachine(limits)
        members = [(node, f"h:{number}", "") for number, node in enumerate(self.names, 1)]
        self.index = 0
        self.command(MetaCommand(bootstrap=first_map(b"c" * 16, members, shards, replicas)))
        self.groups = [Group(tuple(each.id for each in row.replicas)) for row in self.map.shards]
        self.node_of: dict[tuple[int, int], str] = {}
        self.whole = {(row.id, each.id) for row in self.map.shards for each in row.replicas}
        """Replicas that hold everything committed."""
        self.rotten: set[tuple[int, int]] = set()
        self.follow()

    @property
    def map(self) -> ShardMap:
        assert self.machine.map is not None
        return self.machine.map

    # -- meta ----------------------------------------------------------------------------------------------------------

    def command(self, command: MetaCommand) -> Code:
        self.index += 1
        try:
            self.machine.apply(command, Stamp(self.index, 1, self.index, 0), self.view)
        except TenfoldError as refusal:
            return refusal.code
        finally:
            self.machine.check_invariants(self.view)
        return Code.OK

    def join(self, node: str) -> Code:
        self.names.append(node)
        self.up.add(node)
        return self.command(MetaCommand(join=JoinMember(member=Member(node=node, address=f"{node}:1"))))

    def state(self, node: str, state: MemberState) -> Code:
        return self.command(MetaCommand(set_state=SetState(node=node, state=state.value)))  # type: ignore[arg-type]

    def detect(self, node: str) -> None:
        """One step towards the truth."""
        found = next((each for each in self.map.members if each.node == node), None)
        if found is None:
            return
        wanted = [MemberState.UP] if node in self.up else [MemberState.DOWN, MemberState.SUSPECT]
        for state in wanted:
            if lawful(state_of(found), state):
                self.state(node, state)
                return

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Every node does what the map says: unlisted replicas are dropped, and a rebuilt one loses the memory of its former id."""
        listed = {(row.id, each.id): each for row in self.map.shards for each in row.replicas}
        self.node_of.update({key: each.node for key, each in listed.items()})
        self.whole &= set(listed)
        for (shard, number), each in listed.items():
            if each.stage == LEARNER:
                for other in self.map.shards[shard].replicas:
                    if other.node == each.node and other.id != number:
                        self.whole.discard((shard, other.id))

    def runs(self, shard: int, number: int) -> bool:
        return (shard, number) in self.whole and self.node_of[shard, number] in self.up

    def majority(self, shard: int, ids: Collection[int], *, running: bool) -> bool:
        count = sum(self.runs(shard, each) if running else (shard, each) in self.whole for each in ids)
        return 2 * count > len(ids)

    def leader(self, shard: int) -> int:
        """Its id; 0 where nobody can lead."""
        group = self.groups[shard]
        for ids in (group.voters, group.outgoing):
            if ids and not self.majority(shard, ids, running=True):
                return 0
        return next(each for each in group.voters if self.runs(shard, each))

    def reconcile(self, shard: int) -> None:
        """What the leader of a shard does for the map, at most one step."""
        group, row = self.groups[shard], self.map.shards[shard]
        if not self.leader(shard) or row.version < group.version:
            return
        stages = {each.id: each.stage for each in row.replicas}
        if group.outgoing:
            self.groups[shard] = Group(group.voters, group.learners, (), group.version)
            return
        present = {*group.voters, *group.learners}
        new = [number for number, stage in stages.items() if stage == LEARNER and number not in present]
        old = [number for number in group.learners if stages.get(number, LEAVING) == LEAVING]
        if new or old:
            learners = tuple(number for number in (*group.learners, *new) if number not in old)
            self.groups[shard] = Group(group.voters, learners, (), row.version)
            return
        target = self._target(shard, stages)
        if set(target) == set(group.voters):
            group.version = row.version
        elif self.majority(shard, target, running=True):
            learners = tuple(number for number in group.learners if number not in target)
            self.groups[shard] = Group(target, learners, group.voters, row.version)

    def _target(self, shard: int, stages: dict[int, int]) -> tuple[int, ...]:
        group = self.groups[shard]
        ready = [
            number
            for number, stage in stages.items()
            if stage == LEARNER and (number in group.voters or self.runs(shard, number))
        ]
        waiting = LEARNER in stages.values() and not ready
        leaving = [number for number in group.voters if stages.get(number) == LEAVING and waiting]
        return tuple([number for number, stage in stages.items() if stage == VOTER] + ready + leaving)

    def catch_up(self, shard: int) -> None:
        """A learner gets all there is, if its storage is sound: the map lists a new id for one whose was not."""
        for number in self.groups[shard].learners:
            sound = (shard, number) not in self.rotten
            if sound and self.leader(shard) and self.node_of[shard, number] in self.up:
                self.whole.add((shard, number))

    # -- faults --------------------------------------------------------------------------------------------------------

    def rot(self, shard: int, number: int) -> bool:
        """Its storage is corrupt, unless that were one too many: then False."""
        return self._lose({(shard, number)})

    def kill(self, node: str) -> bool:
        """It never comes back, unless that were one too many: then False."""
        if not self._lose({key for key, name in self.node_of.items() if name == node}):
            return False
        self.up.discard(node)
        self.dead.add(node)
        return True

    def _lose(self, lost: set[tuple[int, int]]) -> bool:
        before = set(self.whole)
        self.whole -= lost
        if not self.sound():
            self.whole = before
            return False
        self.rotten |= lost
        return True

    def sound(self) -> bool:
        """A quorum of every group is whole, though not all of it may run."""
        return all(
            not ids or self.majority(shard, ids, running=False)
            for shard, group in enumerate(self.groups)
            for ids in (group.voters, group.outgoing)
        )

    # -- the driver ----------------------------------------------------------------------------------------------------

    def answer(self, node: str) -> StatusReply:
        reply = StatusReply(node=node, epoch=self.map.epoch)
        for row in self.map.shards:
            for each in row.replicas:
                if each.node == node:
                    reply.replicas.append(self._status(row.id, each.id))
        return reply

    def _status(self, shard: int, number: int) -> ReplicaStatus:
        if (shard, number) in self.rotten:
            return ReplicaStatus(shard=shard, replica=number, role="quarantined", quarantine="rotten")
        group = self.groups[shard]
        status = ReplicaStatus(shard=shard, replica=number, role="follower", term=1)
        if self.leader(shard) == number:
            status.role = "leader"
            status.voters.extend(group.voters)
            status.learners.extend(group.learners)
            status.outgoing.extend(group.outgoing)
            status.configuration_version = group.version
            status.configuration_applied = True
        return status

    def decision(self, answering: Collection[str], planner: Planner) -> Decision:
        answers = Answers(self.map, [self.answer(node) for node in sorted(answering)])
        return decide(self.map, planner.plan(self.map, answers.quarantined), answers, self.limits)

    # -- the end -------------------------------------------------------------------------------------------------------

    def check_reached(self) -> None:
        """Everything that can be as it should be, is."""
        able = {each.node for each in self.map.members if state_of(each) in MAY_HOLD}
        for row, group in zip(self.map.shards, self.groups, strict=True):
            holders = [each.node for each in row.replicas]
            assert all(each.stage == VOTER for each in row.replicas), row
            assert set(group.voters) == {each.id for each in row.replicas} and not group.outgoing and not group.learners
            assert set(holders) <= able, row
            assert all(self.runs(row.id, each.id) for each in row.replicas), row
            wanted = self.map.replication_factor
            if row.id == 0:
                wanted = 5 if len(able) >= 5 else min(3, len(able))
            assert len(holders) == wanted, row
