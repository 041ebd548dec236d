"""Which shards live here: opened from what storage recovered, found for requests, reported in `status`.

A request names its shard and that shard's version; it is refused where the shard is not, or not in that placement. A
replica whose storage was found corrupt is quarantined: it has no core, so it neither votes nor serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Random
from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore
from cluster.raft.log import RaftLog
from cluster.raft.messages import HardState, SnapshotPoint
from cluster.raft.settings import RaftSettings
from cluster.types import META_SHARD
from node.cluster_map import ClusterMap
from node.machines.applier import Applier
from node.pump import Pump
from node.replica import Replica
from node.storage.log import Log, RecoveredShard, ShardRound
from node.storage.view import NodeState, ShardState, StateBatch
from proto.gen import meta_pb2, node_pb2

log = structlog.get_logger("shards")


class Shards:
    """The replicas of this node, healthy (`replicas`) and quarantined (shard -> reason)."""

    def __init__(
        self,
        *,
        node: str,
        map: ClusterMap,
        services: Mapping[str, Any],
        limits: Limits,
        random: Random,
        pump: Pump,
        log: Log,
        state: NodeState,
        batch: StateBatch,
    ) -> None:
        self.node = node
        self.map = map
        self.services = services
        self.quarantined: dict[int, str] = {}
        self.replicas = pump.replicas
        self._limits = limits
        self._random = random
        self._pump = pump
        self._log = log
        self._state = state
        self._batch = batch

    def open_all(self, recovered: Mapping[int, RecoveredShard], *, reborn: bool) -> None:
        """Opens every shard the map places here. A shard without a log is new; but on a node that has lived before
        (`reborn`) its log was lost, with votes in it, and such a replica must not vote again."""
        for shard in self.map.current.shards:
            here = next((each for each in shard.replicas if each.node == self.node), None)
            if here is None:
                continue
            found = recovered.get(shard.id)
            if found is None:
                configuration = Configuration(tuple(replica.id for replica in shard.replicas))
                reason = self._log.begin(shard.id, here.id, configuration, fresh=False)
                reason = reason or ("its log is gone" if reborn else "")
                found = RecoveredShard(shard.id, here.id, HardState(), 0, 0, configuration, [], reason)
            self._open(shard, found)

    def _open(self, shard: meta_pb2.Shard, found: RecoveredShard) -> None:
        state = ShardState(self._state.engine, shard.id, self._batch, found.replica, self._limits)
        reason = found.quarantine
        if not reason and found.base_index > state.applied_index:
            reason = f"the state is at index {state.applied_index}, behind the log's base {found.base_index}"
        if reason:
            self.quarantine(shard.id, reason)
            return
        state.clean()
        raft_log = self._raft_log(found, state)
        hard_state = found.hard_state
        hard_state.commit = min(max(hard_state.commit, state.applied_index), raft_log.last_index)
        core = RaftCore(
            replica=found.replica,
            configuration=found.configuration,
            hard_state=hard_state,
            log=raft_log,
            applied_index=state.applied_index,
            settings=RaftSettings.from_limits(self._limits),
            random=self._random,
        )
        applier = Applier(shard.id, {name: each.machine() for name, each in self.services.items()}, self._limits)
        applier.load(state.view, state.time_ms)
        node_of = {replica.id: replica.node for replica in shard.replicas}
        replica = Replica(
            shard.id,
            core,
            state,
            applier,
            node_of,
            self._limits,
            self._pump.mark_dirty,
            preferred=shard.replicas[0].node == self.node,
        )
        self.replicas[shard.id] = replica
        replica.touch()
        replica.hurry_birth()

    def quarantine(self, shard: int, reason: str) -> None:
        """Takes the replica out of votes and service, and remembers it over restarts."""
        log.error("replica quarantined", shard=shard, reason=reason)
        self.quarantined[shard] = reason
        self.replicas.pop(shard, None)
        self._log.quarantine(shard, reason)

    def _raft_log(self, found: RecoveredShard, state: ShardState) -> RaftLog:
        """The log above the state. Where a crash fell between the flush of an installed snapshot and the move of the
        log's base, the log does not reach the state or disagrees with it: then it begins anew after the state."""
        raft_log = RaftLog(found.base_index, found.base_term, found.entries)
        applied = state.applied_index
        if raft_log.term_at(applied) != state.applied_term:
            raft_log.reset(applied, state.applied_term)
            if found.hard_state.term < state.applied_term:  # it never voted there: a vote leaves after its sync
                found.hard_state = HardState(state.applied_term)
            found.hard_state.commit = max(found.hard_state.commit, applied)
            point = SnapshotPoint(applied, state.applied_term, found.configuration)
            self._pump.write_first(ShardRound(found.shard, found.replica, [], found.hard_state, point))
        return raft_log

    def lookup(self, shard: int, version: int) -> Replica:
        """The replica that may serve a request made for that placement; errors as the table says."""
        placed = self.map.shard(shard)
        if placed is None or (shard not in self.replicas and shard not in self.quarantined):
            if placed is not None and version > placed.version:
                raise TenfoldError(Code.MAP_BEHIND)
            raise TenfoldError(Code.WRONG_SHARD, f"shard {shard} is not on node {self.node}")
        if version < placed.version:
            raise TenfoldError(Code.STALE_MAP, f"shard {shard}: version {version}, now {placed.version}")
        if version > placed.version:
            raise TenfoldError(Code.MAP_BEHIND)
        if shard in self.quarantined:
            raise TenfoldError(Code.QUARANTINED, f"shard {shard}: {self.quarantined[shard]}")
        return self.replicas[shard]

    @property
    def data_shards(self) -> int:
        return len(self.map.current.shards) - 1

    @property
    def meta(self) -> Replica | None:
        return self.replicas.get(META_SHARD)

    def led(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.leading]

    def status(self, *, digests: bool) -> list[node_pb2.ReplicaStatus]:
        rows = [
            node_pb2.ReplicaStatus(
                shard=replica.shard,
                replica=replica.core.replica,
                role=str(replica.core.role),
                leader=replica.leader_node(),
                term=replica.core.term,
                commit_index=replica.core.commit_index,
                applied_index=replica.core.applied_index,
                last_index=replica.core.log.last_index,
                base_index=replica.core.log.base_index,
                idle=replica.core.silent,
                digest=replica.state.digest() if digests else 0,
            )
            for replica in self.replicas.values()
        ]
        rows += [node_pb2.ReplicaStatus(shard=s, role="quarantined", quarantine=r) for s, r in self.quarantined.items()]
        return sorted(rows, key=lambda row: row.shard)
