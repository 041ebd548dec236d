"""Which shards live here: opened from what storage recovered, brought up to each newer map, found for requests.

The map says which replica of a shard is to be on this node; what is not here yet is begun, what is listed no more is dropped, log
and state. A replica that leaves goes on until then. A replica whose storage was found corrupt, or whose log is gone, is
quarantined: it has no core, so it neither votes nor serves, until the map puts another one in its place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from cluster.errors import Code, TenfoldError
from cluster.raft.configuration import Configuration
from cluster.raft.messages import HardState
from cluster.ring.shard_map import LEAVING
from cluster.types import META_SHARD
from node.arrival import Loss
from node.cluster_map import ClusterMap
from node.opening import Opener
from node.pump import Pump
from node.replica import Replica
from node.storage.log import Log, RecoveredShard
from node.storage.view import NodeState
from proto.gen import meta_pb2, node_pb2

LOG_GONE = "its log is gone"

log = structlog.get_logger("shards")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A replica that is not to be trusted, and why."""

    replica: int
    reason: str


class Shards:
    """The replicas of this node by shard, healthy (`replicas`) and `quarantined`. `on_opened` and `on_closed` are told of each
    healthy one: before it does anything, and after it can do nothing any more but before its state is deleted."""

    def __init__(
        self,
        *,
        node: str,
        map: ClusterMap,
        services: Mapping[str, Any],
        birth: meta_pb2.ShardMap,
        newborn: bool,
        loss: Loss,
        opener: Opener,
        pump: Pump,
        log: Log,
        state: NodeState,
    ) -> None:
        self.node = node
        self.map = map
        self.services = services
        self.quarantined: dict[int, Quarantined] = {}
        self.replicas = pump.replicas
        self.on_opened: list[Callable[[Replica], None]] = []
        self.on_closed: list[Callable[[Replica], None]] = []
        self._birth = {row.id: row for row in birth.shards}
        self._newborn = newborn
        self._loss = loss
        self._opener = opener
        self._pump = pump
        self._log = log
        self._state = state

    # -- what is to be here --------------------------------------------------------------------------------------------

    async def open_all(self, recovered: Mapping[int, RecoveredShard]) -> None:
        """At the start, before the first round: what the log has and what the map places here. What the map took away while a
        crash came between is dropped; a state nobody owns any more is deleted."""
        for shard, found in recovered.items():
            self._open(found, self.map.shard(shard))
        await self._bring_up(self.map.current, self._write_log)
        for shard in self._state.shards():
            if shard not in self.replicas and shard not in self.quarantined:
                self._state.drop(shard)

    async def follow(self, shard_map: meta_pb2.ShardMap) -> None:
        """Between two rounds: opens, drops and replaces what the map says. By one caller, maps in the order of their epochs."""
        await self._pump.exclusively(lambda: self._bring_up(shard_map, self._pump.write_log))

    async def _write_log(self) -> bool:
        self._log.append([])
        await self._log.sync()
        return True

    async def _bring_up(self, shard_map: meta_pb2.ShardMap, write_log: Callable[[], Awaitable[bool]]) -> None:
        dropped: list[int] = []
        begun: list[tuple[meta_pb2.Shard, RecoveredShard]] = []
        for row in shard_map.shards:
            present = self.replica_of(row.id)
            if present and _is_gone(row, self.node, present):
                self._close(row.id)
                self._log.drop(row.id)
                dropped.append(row.id)
                present = 0
            placed = _placed(row, self.node, present)
            if placed is not None and not present and (found := self._begin(row, placed)) is not None:
                begun.append((row, found))
        if not await write_log():
            return  # the node stops; the next start goes on here
        for shard in dropped:
            self._state.drop(shard)
        for row, found in begun:
            self._open(found, row)
        for row in shard_map.shards:
            replica = self.replicas.get(row.id)
            if replica is not None:
                replica.follow(row)

    def replica_of(self, shard: int) -> int:
        """The id of the replica here, healthy or not; 0 if there is none."""
        replica, bad = self.replicas.get(shard), self.quarantined.get(shard)
        return replica.core.replica if replica is not None else bad.replica if bad is not None else 0

    def _begin(self, row: meta_pb2.Shard, placed: meta_pb2.Replica) -> RecoveredShard | None:
        """A replica that the log does not know. It votes at once if the cluster was born with it; else it knows of nobody
        until a leader tells it. None: whether it was here before is not known yet."""
        birth = self._birth.get(row.id)
        if birth is not None and any(each.id == placed.id for each in birth.replicas):
            configuration = Configuration(tuple(each.id for each in birth.replicas))
            fresh = self._newborn
        elif self._loss.epoch is None:
            return None
        else:
            configuration, fresh = Configuration(()), self._loss.is_new(placed)
        reason = self._log.begin(row.id, placed.id, configuration, fresh=fresh)
        if not fresh:
            reason = reason or LOG_GONE
            self._log.quarantine(row.id, reason)  # in the round of its beginning: it is never known without the mark
        return RecoveredShard(row.id, placed.id, HardState(), 0, 0, configuration, [], reason)

    def _open(self, found: RecoveredShard, row: meta_pb2.Shard | None) -> None:
        opened = self._opener.open(found)
        if isinstance(opened, str):
            self._quarantine(found, opened)
            return
        if row is not None:
            opened.follow(row)
        self.replicas[found.shard] = opened
        for tell in self.on_opened:
            tell(opened)
        opened.touch()
        opened.hurry_birth()

    def _quarantine(self, found: RecoveredShard, reason: str) -> None:
        """Out of votes and service, also after a restart."""
        log.error("replica quarantined", shard=found.shard, replica=found.replica, reason=reason)
        self.quarantined[found.shard] = Quarantined(found.replica, reason)
        self._log.quarantine(found.shard, reason)

    def _close(self, shard: int) -> None:
        """Whoever waits for the replica is told; what its state has is deleted by the caller."""
        bad, replica = self.quarantined.pop(shard, None), self.replicas.get(shard)
        if bad is not None:
            log.info("quarantined replica dropped", shard=shard, replica=bad.replica)
        if replica is not None:
            log.info("replica dropped", shard=shard, replica=replica.core.replica)
            self._pump.remove(replica)
            replica.close(Code.NOT_LEADER)
            for tell in self.on_closed:
                tell(replica)

    # -- what is here --------------------------------------------------------------------------------------------------

    def lookup(self, shard: int, version: int) -> Replica:
        """The replica that may serve a request. Whoever holds the shard serves, whatever placement the request was made for,
        since ownership is decided by Raft; where it is not, the versions tell whose map is the older one."""
        replica = self.replicas.get(shard)
        if replica is not None:
            return replica
        placed, bad = self.map.shard(shard), self.quarantined.get(shard)
        known = placed.version if placed is not None else 0
        if version < known:
            raise TenfoldError(Code.STALE_MAP, f"shard {shard}: version {version}, now {known}")
        if bad is not None:
            raise TenfoldError(Code.QUARANTINED, f"shard {shard}: {bad.reason}")
        if version > known and (placed is not None or not self.map.epoch):
            raise TenfoldError(Code.MAP_BEHIND)
        raise TenfoldError(Code.WRONG_SHARD, f"shard {shard} is not on node {self.node}")

    @property
    def lost(self) -> bool:
        """What was here is lost, and how much that is, not told yet: nothing is begun."""
        return self._loss.epoch is None

    @property
    def data_shards(self) -> int:
        return len(self.map.current.shards) - 1

    @property
    def meta(self) -> Replica | None:
        return self.replicas.get(META_SHARD)

    def led(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.leading]

    def status(self, *, digests: bool) -> list[node_pb2.ReplicaStatus]:
        rows = [_row(replica, digests) for replica in self.replicas.values()]
        rows += [
            node_pb2.ReplicaStatus(shard=shard, replica=bad.replica, role="quarantined", quarantine=bad.reason)
            for shard, bad in self.quarantined.items()
        ]
        return sorted(rows, key=lambda row: row.shard)


def _placed(row: meta_pb2.Shard, node: str, present: int) -> meta_pb2.Replica | None:
    """The replica that is to be on `node`. Of two that are listed it is the one that does not leave; none that is leaving
    comes."""
    listed = [each for each in row.replicas if each.node == node]
    staying = [each for each in listed if each.stage != LEAVING]
    return staying[0] if staying else next((each for each in listed if each.id == present), None)


def _is_gone(row: meta_pb2.Shard, node: str, present: int) -> bool:
    """Whether the map took the replica away. One that it does not know yet is newer than the map, which was damaged then."""
    placed = _placed(row, node, present)
    return present < row.next_replica_id and (placed is None or placed.id != present)


def _row(replica: Replica, digests: bool) -> node_pb2.ReplicaStatus:
    core = replica.core
    configuration = core.configuration
    return node_pb2.ReplicaStatus(
        shard=replica.shard,
        replica=core.replica,
        role=str(core.role),
        leader=replica.leader_node(),
        term=core.term,
        commit_index=core.commit_index,
        applied_index=core.applied_index,
        last_index=core.log.last_index,
        base_index=core.log.base_index,
        idle=core.silent,
        digest=replica.state.digest() if digests else 0,
        voters=configuration.voters,
        learners=configuration.learners,
        outgoing=configuration.outgoing,
        configuration_version=configuration.version,
        configuration_applied=core.configuration_index <= core.applied_index,
        progress=[
            node_pb2.PeerProgress(replica=peer, match_index=progress.match, state=progress.state)
            for peer, progress in core.progress.items()
            if peer != core.replica
        ],
    )
