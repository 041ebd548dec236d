"""The five properties of Raft (paper, figure 3) and what this implementation adds, checked over all replicas at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.raft import quorum
from cluster.raft.configuration import Configuration, problem_with_change
from cluster.raft.messages import Entry
from cluster.types import EntryKind, Role

if TYPE_CHECKING:
    from tests.raft.network import Replica


class Laws:
    def __init__(self, birth: Configuration) -> None:
        self.members = set(birth.members)  # who ever was one
        self.newest = (0, birth)  # the last configuration that anybody applied, and its index
        self.commit = 0  # the highest index that any replica ever knew to be committed
        self._leaders: dict[int, int] = {}  # term -> replica
        self._entries: dict[
            tuple[int, int], tuple[int, int, bytes]
        ] = {}  # (index, term) -> (term before, kind, payload)
        self._committed: dict[int, tuple[int, int]] = {}  # index -> (term of the entry, term it was known in)
        self._applied: dict[int, tuple[int, int, bytes]] = {}
        self._commits: dict[tuple[int, int], int] = {}  # (replica, start) -> commit index
        self._seen: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._in_force: dict[int, Configuration] = {}  # at the last check

    def check(self, replicas: Iterable[Replica]) -> None:
        replicas = list(replicas)
        for each in replicas:
            if not each.up:
                continue
            core = each.core
            core.check_invariants()
            self._election_safety(each)
            key = (each.replica, each.starts)
            now = (core.log.last_index, core.log.last_term, core.commit_index)
            if self._seen.get(key) != now:
                self._seen[key] = now
                self._log_matching(each)
                self._commit_grows(each, replicas)
                self._one_change_at_a_time(each)
            self._leader_completeness(each)
        for each in replicas:
            self._in_force[each.replica] = each.core.configuration

    def check_leases(self, replicas: Iterable[Replica]) -> None:
        """Who may answer from its lease now misses no commit that anyone could have acknowledged."""
        for each in replicas:
            index = each.core.lease_read_index() if each.up else None
            assert index is None or index >= self.commit, f"a lease read of {index} misses {self.commit}"

    def applied(self, entry: Entry) -> None:
        """State machine safety: no two replicas apply different entries at one index."""
        if entry.kind == EntryKind.CONFIG:
            configuration = Configuration.decode(entry.payload)
            self.members.update(configuration.members)
            self.newest = max(self.newest, (entry.index, configuration), key=lambda each: each[0])
        value = (entry.term, entry.kind, entry.payload)
        assert self._applied.setdefault(entry.index, value) == value, (
            f"{entry!r} differs from {self._applied[entry.index]}"
        )

    def _election_safety(self, each: Replica) -> None:
        """At most one leader in a term."""
        core = each.core
        if core.role is Role.LEADER:
            leader = self._leaders.setdefault(core.term, each.replica)
            assert leader == each.replica, f"{leader} and {each.replica} lead term {core.term}"

    def _log_matching(self, each: Replica) -> None:
        """The same index and term means the same entry and the same entries before it: by induction over the pairs. (A
        single voter leads before its term is durable; if it crashes then, it opens the same term again, seen by no one.)
        """
        log = each.core.log
        term = log.base_term
        for index in range(log.base_index + 1, (log.persisted_index if each.core.alone else log.last_index) + 1):
            entry = log.entry_at(index)
            value = (term, entry.kind, entry.payload)
            assert self._entries.setdefault((index, entry.term), value) == value, f"{entry!r} has two pasts"
            term = entry.term

    def _commit_grows(self, each: Replica, replicas: list[Replica]) -> None:
        core = each.core
        key = (each.replica, each.starts)
        assert core.commit_index >= self._commits.get(key, 0), "the commit index went back"
        self._commits[key] = core.commit_index
        log = core.log
        for index in range(max(log.base_index, 1), core.commit_index + 1):
            term = log.term_at(index)
            assert term is not None
            if index not in self._committed:
                self._committed[index] = (term, core.term)
                if index > self.commit:
                    self._durable_on_majority(each, index, term, replicas)
            assert self._committed[index][0] == term, f"two entries are committed at {index}"
        self.commit = max(self.commit, core.commit_index)

    def _durable_on_majority(self, by: Replica, index: int, term: int, replicas: list[Replica]) -> None:
        """Acknowledged means fsynced on a majority, in a joint configuration on one of each list (paper, section 6). What
        counts is what was in force when it was committed: the leader may have left a joint configuration in the same step.
        """
        configuration = self._in_force.get(by.replica, by.core.configuration)
        holders = [
            each.replica for each in replicas if each.durable.base.index >= index or each.durable.term_at(index) == term
        ]
        for voters in (configuration.voters, configuration.outgoing):
            held = quorum.won(dict.fromkeys(holders, True), voters)
            assert held or not voters, f"{index} is committed in {configuration}, but durable on {holders} only"

    def _one_change_at_a_time(self, each: Replica) -> None:
        """In no log is more than one configuration uncommitted, and each follows lawfully from the one before it."""
        log = each.core.log
        entries = [log.entry_at(index) for index in range(log.base_index + 1, log.last_index + 1)]
        changes = [entry for entry in entries if entry.kind == EntryKind.CONFIG]
        uncommitted = [entry for entry in changes if entry.index > self.commit]
        assert len(uncommitted) <= 1, f"{each.replica} holds two changes that are not committed: {uncommitted}"
        configurations = [Configuration.decode(entry.payload) for entry in changes]
        for before, after in itertools.pairwise(configurations):
            problem = problem_with_change(before, after)
            assert not problem, f"{each.replica} holds {before}, then {after}: {problem}"

    def _leader_completeness(self, each: Replica) -> None:
        """A leader holds every entry committed in an earlier term."""
        core = each.core
        if core.role is not Role.LEADER or core.log.base_index >= self.commit:
            return
        for index in range(self.commit, core.log.base_index, -1):
            term, known_in = self._committed.get(index, (0, 0))
            if term and known_in < core.term:
                assert core.log.term_at(index) == term, (
                    f"leader {each.replica} of term {core.term} lacks {index}/{term}"
                )
                return  # log matching carries it to all before
