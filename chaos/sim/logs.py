"""The laws of the replicated log, checked on the logs of all replicas at once.

    log matching    an entry is named by shard, index and term: everywhere it has one content and one predecessor (Raft
                    paper, section 5.3)
    safe answer     what a follower acknowledges to a leader is what that leader has there
    safe commit     when a leader says that an entry is committed, no replica that lacks it can still become leader. That
                    is what committed means (section 5.4); it is asked of the logs as they are in memory and again as
                    they would be if all power failed now, so a breach is found before anything is lost

Logs of nodes that are down are known as they were durable when they went down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import xxhash

from cluster.raft.configuration import Configuration
from cluster.raft.log import RaftLog
from cluster.types import Role
from node.replica import Replica
from proto.gen import peer_pb2

FACTS_MAX = 200_000


class _Held(NamedTuple):
    """A replica's log and how much of it counts."""

    log: RaftLog
    until: int

    def lacks(self, index: int, term: int) -> bool:
        return index > self.log.base_index and (index > self.until or self.log.term_at(index) != term)

    @property
    def end(self) -> tuple[int, int]:
        """What votes are decided by."""
        return (self.log.term_at(self.until) or 0, self.until)


class Logs:
    def __init__(self, breach: Callable[[str], None]) -> None:
        self._breach = breach
        self._entries: dict[tuple[int, int, int], tuple[int, int]] = {}  # (shard, index, term) -> content, term before
        self._seen: dict[RaftLog, tuple[int, int]] = {}  # index and term up to which a log was compared
        self._logs: dict[int, dict[int, tuple[str, _Held | RaftLog]]] = {}  # shard -> replica id -> node, log
        self._replicas: dict[tuple[int, int], Replica] = {}  # those that live, by shard and replica id
        self._committed: dict[int, int] = {}  # shard -> highest index found safely committed

    # -- who has which log ---------------------------------------------------------------------------------------------

    def born(self, name: str, replica: Replica) -> None:
        self._logs.setdefault(replica.shard, {})[replica.core.replica] = (name, replica.core.log)
        self._replicas[replica.shard, replica.core.replica] = replica

    def died(self, replica: Replica) -> None:
        self._replicas.pop((replica.shard, replica.core.replica), None)
        log = replica.core.log
        name, _ = self._logs[replica.shard][replica.core.replica]
        self._logs[replica.shard][replica.core.replica] = (name, _Held(log, log.persisted_index))
        self._seen.pop(log, None)

    # -- log matching --------------------------------------------------------------------------------------------------

    def compare(self, name: str, replica: Replica) -> None:
        """The entries that came to a replica's log since it was last looked at."""
        log, shard = replica.core.log, replica.shard
        index, term = self._seen.get(log, (0, 0))
        if index < log.base_index or log.term_at(index) != term:
            index, term = log.base_index, log.base_term
        while index < log.last_index:
            index += 1
            entry = log.entry_at(index)
            fact = (xxhash.xxh3_64_intdigest(entry.payload, seed=entry.kind), term)
            known = self._entries.setdefault((shard, index, entry.term), fact)
            if known != fact:
                what = "another content" if known[0] != fact[0] else f"one of term {term} before it, not {known[1]}"
                self._breach(f"logs do not match: {name} has entry {index}/{entry.term} of shard {shard} with {what}")
            term = entry.term
        self._seen[log] = (index, term)
        while len(self._entries) > FACTS_MAX:
            del self._entries[next(iter(self._entries))]

    def acknowledged(self, name: str, replica: Replica, message: peer_pb2.RaftMessage) -> None:
        """An acknowledgement leaves. Both logs only grow as long as leader and follower are in that term."""
        leader = self._replicas.get((message.shard, message.receiver))
        if leader is None or leader.core.role is not Role.LEADER:
            return
        index, term, core = message.index, message.term, replica.core
        if not term == core.term == leader.core.term or core.replica != message.sender or replica.installing:
            return
        known, mine = leader.core.log.term_at(index), core.log.term_at(index)
        beyond = index > leader.core.log.last_index
        if beyond or (known is not None and mine is not None and known != mine):
            self._breach(
                f"logs do not match: {name} acknowledges {index} of shard {message.shard} in term {term} and has {mine} there, its "
                f"leader {known}"
            )

    # -- safe commit ---------------------------------------------------------------------------------------------------

    def committed(self, name: str, replica: Replica) -> None:
        """A leader's word leaves `name`: is what it holds for committed safe?"""
        core, shard = replica.core, replica.shard
        index = core.commit_index
        if core.role is not Role.LEADER or index <= self._committed.get(shard, 0):
            return
        self._committed[shard] = index
        term = core.log.term_at(index)
        if term is None:
            return
        for what, durable in (("in memory", False), ("on disk", True)):
            rival = self._rival(shard, core.configuration, index, term, durable=durable)
            if rival:
                self._breach(
                    f"unsafe commit: {name} leads shard {shard} in term {core.term} and has committed {index}/{term}, and "
                    f"replica {rival}, which lacks it {what}, can be elected"
                )
                return

    def _rival(self, shard: int, configuration: Configuration, index: int, term: int, *, durable: bool) -> int:
        known = self._logs.get(shard, {})
        held = {
            replica: log if isinstance(log, _Held) else _Held(log, log.persisted_index if durable else log.last_index)
            for replica, (_, log) in known.items()
            if configuration.votes(replica)
        }
        for replica, mine in held.items():
            if mine.lacks(index, term):
                voters = {each for each, theirs in held.items() if mine.end >= theirs.end}
                sides = [side for side in (configuration.voters, configuration.outgoing) if side]
                if all(2 * len(voters & set(side)) > len(side) for side in sides):
                    return replica
        return 0
