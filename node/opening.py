"""Makes a replica out of what storage has of it: its log, its state and the configuration in force there.

The configuration is that of the last CONFIG entry above the applied index (the core finds it), else that of the state, which
is as of its applied index, else the one the log began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.limits import Limits
from cluster.ports import Random
from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore
from cluster.raft.log import RaftLog
from cluster.raft.messages import HardState, SnapshotPoint
from cluster.raft.settings import RaftSettings
from node.machines.applier import Applier
from node.pump import Pump
from node.replica import Replica
from node.storage.log import RecoveredShard, ShardRound
from node.storage.view import NodeState, ShardState, StateBatch


class Opener:
    """What all replicas of a node are made with."""

    def __init__(
        self,
        services: Mapping[str, Any],
        state: NodeState,
        batch: StateBatch,
        pump: Pump,
        random: Random,
        limits: Limits,
    ) -> None:
        self._services = services
        self._state = state
        self._batch = batch
        self._pump = pump
        self._random = random
        self._limits = limits

    def open(self, found: RecoveredShard) -> Replica | str:
        """The replica, which nobody knows of yet; or why it is not to be trusted."""
        state = ShardState(self._state.engine, found.shard, self._batch, found.replica, self._limits)
        if found.quarantine:
            return found.quarantine
        if found.base_index > state.applied_index:
            return f"the state is at index {state.applied_index}, behind the log's base {found.base_index}"
        state.clean()
        configuration = state.configuration or found.configuration
        raft_log = self._raft_log(found, state, configuration)
        hard_state = found.hard_state
        hard_state.commit = min(max(hard_state.commit, state.applied_index), raft_log.last_index)
        core = RaftCore(
            replica=found.replica,
            configuration=configuration,
            hard_state=hard_state,
            log=raft_log,
            applied_index=state.applied_index,
            settings=RaftSettings.from_limits(self._limits),
            random=self._random,
        )
        machines = {name: each.machine() for name, each in self._services.items()}
        applier = Applier(found.shard, machines, self._limits)
        applier.load(state.view, state.time_ms)
        return Replica(found.shard, core, state, applier, self._limits, self._pump.mark_dirty)

    def _raft_log(self, found: RecoveredShard, state: ShardState, configuration: Configuration) -> RaftLog:
        """The log above the state. Where a crash fell between the flush of an installed snapshot and the move of the
        log's base, the log does not reach the state or disagrees with it: then it begins anew after the state."""
        raft_log = RaftLog(found.base_index, found.base_term, found.entries)
        applied = state.applied_index
        if raft_log.term_at(applied) != state.applied_term:
            raft_log.reset(applied, state.applied_term)
            if found.hard_state.term < state.applied_term:  # it never voted there: a vote leaves after its sync
                found.hard_state = HardState(state.applied_term)
            found.hard_state.commit = max(found.hard_state.commit, applied)
            point = SnapshotPoint(applied, state.applied_term, configuration)
            self._pump.write_first(ShardRound(found.shard, found.replica, [], found.hard_state, point))
        return raft_log
