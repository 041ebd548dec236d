"""The laws that are watched while a cluster runs: all of it is in one process, so nothing is inferred.

    one leader per term       whoever sends as leader of (shard, term) is one replica
    logs, promises            log matching and safe commits (`logs.py`); votes, acknowledgements and what was called durable
                              are kept, over every crash (`promises.py`), and what a state is said to hold (`durable.py`)
    state machine safety      all replicas apply the same entry at an index (Raft thesis, figure 3.2)
    leader completeness       a leader's log holds the last entry that any replica applied in an earlier term
    leases                    no read is answered from the past, too early or by a lease that is over, and no two leaders hold
                              a lease (`leases.py`)
    commit never goes back    in one incarnation; nothing is applied that is not committed
    equal state               replicas at one applied index have one digest
    no false alarm            nothing is quarantined where nothing was damaged
    invariants                each core's and each applier's `check_invariants`

A breach raises nothing where it is seen, since production code could catch that: it is kept, and ends the run.
"""

from __future__ import annotations

from typing import Any

import xxhash

from chaos.sim.durable import Durable
from chaos.sim.leases import Leases
from chaos.sim.logs import Logs
from chaos.sim.promises import Promises
from cluster.raft.messages import Entry, MessageKind
from node.app import Node
from node.replica import Replica

LEADERS_SAY = frozenset((MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.TIMEOUT_NOW))
PROMISES = frozenset((MessageKind.VOTE, MessageKind.VOTE_REPLY, MessageKind.APPEND_REPLY))
DIGESTS_KEPT = 4096


class Oracles:
    """One per run. `breaches` are for people; any of them is a violation."""

    def __init__(self) -> None:
        self.breaches: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.logs = Logs(self.breach)
        self.promises = Promises(self.breach)
        self.damaged_hosts: dict[str, None] = {}
        """Where something was destroyed on purpose, and is not whole again: there replicas may be quarantined."""
        self._watched: dict[Replica, None] = {}
        self._leaders: dict[tuple[int, int], int] = {}  # (shard, term) -> replica
        self._applied: dict[tuple[int, int], tuple[int, int]] = {}  # (shard, index) -> term, hash of the entry
        self._highest: dict[int, int] = {}  # shard -> highest index applied anywhere
        self._commits: dict[Replica, int] = {}
        self._leases = Leases(self.breach, self._highest)
        self._durable = Durable(self.breach)
        self._digests: dict[tuple[int, int], tuple[int, str]] = {}
        self._seen: dict[tuple[int, int, str], None] = {}
        self.applied = 0
        self.elections = 0

    def breach(self, text: str) -> None:
        if len(self.breaches) < 20:
            self.breaches.append(text)

    # -- what is told --------------------------------------------------------------------------------------------------

    def born(self, node: Node) -> None:
        """A node has started: its replicas are watched from before their first apply."""
        self.nodes[node.config.node] = node
        self.promises.born(node)
        self._durable.watch(node)
        for replica in node.shards.replicas.values():
            self._watch(node, replica)
        node.shards.on_opened.append(lambda replica: self._watch(node, replica))

    def died(self, name: str) -> None:
        node = self.nodes.pop(name, None)
        if node is not None:
            self.promises.died(node)
            for replica in node.shards.replicas.values():
                self.logs.died(replica)
                self._watched.pop(replica, None)

    def _watch(self, node: Node, replica: Replica) -> None:
        """From before its first apply, or, where it was placed on a node that runs, from when it is first seen."""
        self._watched[replica] = None
        apply, name = replica.applier.apply, node.config.node
        self.logs.born(name, replica)
        self._leases.watch(name, node, replica)

        def watched(entry: Entry, *, want_results: bool) -> Any:
            self._on_apply(name, replica, entry)
            return apply(entry, want_results=want_results)

        replica.applier.apply = watched  # type: ignore[method-assign]

    def sent(self, host: str, method: str, message: Any) -> None:
        """A process sends a message on a stream."""
        node = self.nodes.get(host)
        if method != "Frames" or node is None:
            return
        for each in message.messages:
            if each.kind in LEADERS_SAY:
                self._on_leader(host, each.shard, each.term, each.sender)
                replica = node.shards.replicas.get(each.shard)
                if replica is not None:
                    self.logs.committed(host, replica)
            elif each.kind in PROMISES:
                self.promises.sent(node, each)
                if each.kind == MessageKind.APPEND_REPLY and not each.reject:
                    replica = node.shards.replicas.get(each.shard)
                    if replica is not None:
                        self.logs.acknowledged(host, replica, each)

    def _on_leader(self, host: str, shard: int, term: int, replica: int) -> None:
        known = self._leaders.setdefault((shard, term), replica)
        if known != replica:
            self.breach(f"two leaders: replicas {known} and {replica} of shard {shard} in term {term}")
        elif (shard, term, host) not in self._seen:
            self._seen[shard, term, host] = None
            self.elections += 1
            self._leases.elected(host, shard, term, self.nodes.items())
            self._complete(host, shard, term)

    def _complete(self, host: str, shard: int, term: int) -> None:
        """The new leader's log against the last entry applied anywhere."""
        node = self.nodes.get(host)
        replica = node.shards.replicas.get(shard) if node is not None else None
        highest = self._highest.get(shard, 0)
        if replica is None or not highest or replica.core.term != term:
            return
        applied_term, _ = self._applied[shard, highest]
        log = replica.core.log
        found = log.term_at(highest)
        if applied_term < term and highest > log.base_index and found != applied_term:
            self.breach(
                f"incomplete leader: {host} leads shard {shard} in term {term} with {found} at index {highest}, "
                f"where {applied_term} was applied; its log ends at {log.last_index}"
            )

    def _on_apply(self, name: str, replica: Replica, entry: Entry) -> None:
        self.applied += 1
        shard, core = replica.shard, replica.core
        if entry.index > core.commit_index:
            self.breach(f"{name} applies entry {entry.index} of shard {shard}, committed is {core.commit_index}")
        if entry.index != core.applied_index + 1:
            self.breach(f"{name} applies entry {entry.index} of shard {shard} after {core.applied_index}")
        fact = (entry.term, xxhash.xxh3_64_intdigest(entry.payload, seed=entry.kind))
        known = self._applied.setdefault((shard, entry.index), fact)
        if known != fact:
            self.breach(f"{name} applies at {entry.index} of shard {shard} an entry of term {fact[0]}, not {known}")
        if entry.index > self._highest.get(shard, 0):
            self._highest[shard] = entry.index

    # -- what is looked at ---------------------------------------------------------------------------------------------

    def look(self, *, thorough: bool) -> None:
        """Between two callbacks; `thorough` costs the size of the state."""
        for name, node in self.nodes.items():
            self._durable.look(node)
            for shard, reason in node.shards.quarantined.items() if name not in self.damaged_hosts else ():
                self.breach(f"{name} has quarantined shard {shard}, and nothing was damaged: {reason}")
            for replica in list(node.shards.replicas.values()):
                if replica not in self._watched:
                    self._watch(node, replica)
                self._look_at(name, node, replica, thorough)

    def _look_at(self, name: str, node: Node, replica: Replica, thorough: bool) -> None:
        core = replica.core
        if core.commit_index < self._commits.get(replica, 0):
            self.breach(f"{name}: commit of shard {replica.shard} goes back to {core.commit_index}")
        self._commits[replica] = core.commit_index
        self.promises.look(replica)
        self.logs.compare(name, replica)
        if not thorough:
            return
        try:
            core.check_invariants()
            if not replica.installing:
                replica.applier.check_invariants()
        except AssertionError as error:
            self.breach(f"{name}: shard {replica.shard}: {error}")
        if not node.batch and not replica.installing and core.applied_index == replica.state.applied_index:
            self._compare(name, replica)

    def _compare(self, name: str, replica: Replica) -> None:
        at = (replica.shard, replica.core.applied_index)
        digest = replica.state.digest()
        known, first = self._digests.setdefault(at, (digest, name))
        if known != digest:
            self.breach(f"{name} and {first} differ: shard {at[0]} at applied index {at[1]}")
        while len(self._digests) > DIGESTS_KEPT:
            del self._digests[next(iter(self._digests))]
