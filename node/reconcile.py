"""Brings each shard led here to the placement that the map wants, one lawful step of its configuration at a time.

The map says who shall hold a shard; only the shard's leader can bring its group there, and it looks at nothing but the map's
row, its configuration and what its followers have. So nothing needs to be remembered: a new leader goes on where the last one
stopped. Laws: a replica votes only after it has caught up; one that leaves keeps its vote until another has it, unless the row
wants fewer; voters change only while a majority of the old and one of the new answers. Thesis (Ongaro 2014), chapter 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import structlog

from cluster.limits import Limits
from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore
from cluster.raft.messages import ConfigurationRefused, NotLeader
from cluster.raft.progress import ProgressState
from cluster.raft.quorum import majority
from node.cluster_map import ClusterMap
from node.replica import Replica
from node.shards import Shards
from proto.gen.meta_pb2 import Member, Shard
from proto.gen.meta_pb2 import Replica as Placed

VOTER, LEAVING = Placed.VOTER, Placed.LEAVING
UNFIT_MEMBERS = frozenset((Member.LEAVING, Member.DOWN))

log = structlog.get_logger("reconcile")


@dataclass(frozen=True, slots=True)
class HandOver:
    """Another replica is to lead."""

    target: int


Step = Configuration | HandOver


@dataclass(frozen=True, slots=True)
class Facts:
    """What a leader knows of its shard. `answering` holds itself; `fit` are on nodes that are up, and hold (nearly) all it has."""

    me: int
    configuration: Configuration
    answering: Set[int]
    fit: Set[int]
    match: Mapping[int, int]


# -- pure decisions ----------------------------------------------------------------------------------------------------


def next_step(row: Shard, facts: Facts) -> Step | None:
    """What the leader should do next for the map's row; None if nothing, or nothing yet. The configuration is committed."""
    configuration = facts.configuration
    if configuration.joint or row.version < configuration.version:
        return None
    learners = _learners(row, configuration)
    if learners is not None:
        return learners
    target = _target(row, facts)
    if target and set(target) != set(configuration.voters):
        return _joint(row, facts, target)
    if row.version > configuration.version and any(each.stage != VOTER for each in row.replicas):
        # Nothing changes, and the driver may settle the row by what is committed for this version.
        return Configuration(configuration.voters, configuration.learners, (), row.version)
    return None


def settled(row: Shard, configuration: Configuration) -> bool:
    """The group is what the row wants, and the row wants no change."""
    return (
        not configuration.joint
        and not configuration.learners
        and all(each.stage == VOTER for each in row.replicas)
        and set(configuration.voters) == {each.id for each in row.replicas}
    )


def preferred(row: Shard, unfit: Set[str]) -> int:
    """The replica that should lead: the first voter whose node is not on its way out; 0 if there is none."""
    return next((each.id for each in row.replicas if each.stage == VOTER and each.node not in unfit), 0)


def _learners(row: Shard, configuration: Configuration) -> Configuration | None:
    """Who is to follow, where that differs from who does."""
    wanted = [each.id for each in row.replicas if each.stage != LEAVING]
    staying = [learner for learner in configuration.learners if learner in wanted]
    coming = [replica for replica in wanted if replica not in configuration.members]
    if not coming and len(staying) == len(configuration.learners):
        return None
    return Configuration(configuration.voters, (*staying, *coming), (), row.version)


def _target(row: Shard, facts: Facts) -> list[int]:
    """Who should vote now: who stays, who has caught up, and of those that leave as many as others are awaited."""
    configuration = facts.configuration
    wanted = [each.id for each in row.replicas if each.stage != LEAVING]
    ready = [each for each in wanted if each in configuration.voters or each in facts.fit]
    leaving = [voter for voter in configuration.voters if voter not in wanted]
    return ready + leaving[: len(wanted) - len(ready)]


def _joint(row: Shard, facts: Facts, target: list[int]) -> Step | None:
    voters = facts.configuration.voters
    if facts.me not in target:
        heirs = [each for each in target if each in voters]
        able = [each for each in heirs if each in facts.fit]
        if able:
            return HandOver(max(able, key=lambda each: facts.match[each]))
        if heirs:
            return None
    if not (_answers(target, facts.answering) and _answers(voters, facts.answering)):
        return None
    learners = tuple(each for each in facts.configuration.learners if each not in target)
    return Configuration(tuple(target), learners, voters, row.version)


def _answers(voters: list[int] | tuple[int, ...], answering: Set[int]) -> bool:
    return sum(voter in answering for voter in voters) >= majority(len(voters))


# -- for all shards led here -------------------------------------------------------------------------------------------


class Reconciler:
    """One per node. `look` is called at every tick and does something only where something is to be done; a silent shard
    is woken by a step alone."""

    def __init__(self, shards: Shards, map: ClusterMap, limits: Limits) -> None:
        self._shards = shards
        self._map = map
        self._limits = limits
        self._look_at_s = 0.0
        self._done: dict[int, tuple[Shard, Configuration]] = {}  # by shard: nothing is left to do for these
        self._fit_since: dict[int, tuple[int, float]] = {}  # by shard: the preferred leader, and since when it could be

    def wake(self) -> None:
        """The map changed: do not wait."""
        self._look_at_s = 0.0

    def look(self, now: float, up: Set[str]) -> None:
        """`up` are the nodes that messages reach and that are not about to stop, this one included."""
        if now < self._look_at_s:
            return
        led = self._shards.led()
        unfit = {member.node for member in self._map.current.members if member.state in UNFIT_MEMBERS}
        may_transfer = not any(replica.core.transferring for replica in led)
        busy = False
        for replica in led:
            row = self._map.shard(replica.shard)
            if row is None or self._is_done(replica, row):
                continue
            if settled(row, replica.core.configuration):
                may_transfer = not self._prefer(replica, preferred(row, unfit), now, up, may_transfer) and may_transfer
            else:
                busy = True
                self._bring_on(replica, row, up)
        self._look_at_s = now if busy else now + self._limits.node_heartbeat_ms / 1000

    def _is_done(self, replica: Replica, row: Shard) -> bool:
        done = self._done.get(replica.shard)
        return done is not None and done[0] is row and done[1] is replica.core.configuration

    def _bring_on(self, replica: Replica, row: Shard, up: Set[str]) -> None:
        core = replica.core
        self._fit_since.pop(replica.shard, None)
        if core.transferring or not _committed(core):
            return
        step = next_step(row, _facts(replica, up))
        if step is None:
            return
        try:
            if isinstance(step, HandOver):
                core.transfer_leadership(step.target)
            else:
                core.propose_configuration(step)
        except (NotLeader, ConfigurationRefused) as refusal:
            log.info("step refused", shard=replica.shard, step=str(step), reason=str(refusal))
            return
        log.info("step", shard=replica.shard, step=str(step), row_version=row.version)
        replica.touch()

    def _prefer(self, replica: Replica, target: int, now: float, up: Set[str], may_transfer: bool) -> bool:
        """Hands over to the preferred leader once it has been fit for long enough; whether it did."""
        core, shard = replica.core, replica.shard
        if target in (0, core.replica):
            if target:
                row = self._map.shard(shard)
                assert row is not None
                self._done[shard] = (row, core.configuration)
            self._fit_since.pop(shard, None)
            return False
        sending = any(progress.state is ProgressState.SNAPSHOT for progress in core.progress.values())
        if sending or core.transferring or not _committed(core) or target not in _fit(replica, up):
            self._fit_since.pop(shard, None)
            return False
        known, since = self._fit_since.setdefault(shard, (target, now))
        if known != target:
            self._fit_since[shard] = (target, now)
            return False
        if not may_transfer or now - since < self._limits.prefer_after_ms / 1000:
            return False
        del self._fit_since[shard]  # a transfer that fails is not tried again at once
        log.info("hands over to the preferred leader", shard=shard, replica=target)
        core.transfer_leadership(target)
        replica.touch()
        return True


def _committed(core: RaftCore) -> bool:
    """Its configuration is, and something of its own term: only then may it be changed (thesis, section 4.1)."""
    return core.commit_index >= max(core.term_start, core.configuration_index)


def _fit(replica: Replica, up: Set[str]) -> set[int]:
    """In a shard with nothing to replicate a follower that came back is still being probed, though it has everything."""
    core, last = replica.core, replica.core.log.last_index
    near = [each for each, progress in core.progress.items() if progress.match == last or core.caught_up(each)]
    return {each for each in near if replica.node_of.get(each) in up}


def _facts(replica: Replica, up: Set[str]) -> Facts:
    core = replica.core
    return Facts(
        core.replica,
        core.configuration,
        {each for each in core.progress if core.answered_lately(each)},
        _fit(replica, up),
        {each: progress.match for each, progress in core.progress.items()},
    )
