"""What replicas promise, and whether they keep it over every crash.

    votes         in a term a replica votes for one candidate, itself included (Raft paper, section 5.2)
    acks          in the term in which it acknowledged an index, a replica's log reaches it (section 5.3: only a conflict
                  removes entries, and the leader of that term has none with itself)
    durability    the votes it gave, and what a replica or its state held for durable when the process ended is there when it starts again

A host whose disk was damaged on purpose owes nothing: `forget` it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cluster.raft.messages import MessageKind
from node.app import Node
from node.replica import Replica
from proto.gen import peer_pb2

Place = tuple[int, int]
"""(shard, replica id)."""


class Held(NamedTuple):
    """What a replica on `node` held for durable: its term, the end of its log with the term there, its applied index."""

    node: str
    term: int
    last_index: int
    last_term: int
    applied: int


class Promises:
    def __init__(self, breach: Callable[[str], None]) -> None:
        self._breach = breach
        self._votes: dict[tuple[int, int, int], int] = {}  # (shard, voter, term) -> candidate
        self._acks: dict[Place, tuple[int, int]] = {}  # term, highest index acknowledged in it
        self._held: dict[Place, Held] = {}

    def sent(self, node: Node, message: peer_pb2.RaftMessage) -> None:
        """A message of a replica on `node` leaves."""
        kind = message.kind
        if kind == MessageKind.APPEND_REPLY:
            if not message.reject:
                self._acknowledged(node, message)
        elif kind == MessageKind.VOTE_REPLY:
            if not message.reject:
                self._voted(node, message.shard, message.sender, message.term, message.receiver)
        elif kind == MessageKind.VOTE:
            self._voted(node, message.shard, message.sender, message.term, message.sender)

    def _voted(self, node: Node, shard: int, voter: int, term: int, candidate: int) -> None:
        known = self._votes.setdefault((shard, voter, term), candidate)
        if known != candidate:
            self._breach(
                f"two votes: replica {voter} of shard {shard} on {node.config.node} voted in term {term} for {known} and "
                f"for {candidate}"
            )

    def _acknowledged(self, node: Node, message: peer_pb2.RaftMessage) -> None:
        place = (message.shard, message.sender)
        replica = node.shards.replicas.get(message.shard)
        if replica is not None and replica.core.replica == message.sender:
            self.look(replica)
        term, index = self._acks.get(place, (0, 0))
        if message.term > term:
            self._acks[place] = (message.term, message.index)
        elif message.term == term:
            self._acks[place] = (term, max(index, message.index))

    def look(self, replica: Replica) -> None:
        """At any moment: what was acknowledged in this term is durable."""
        core = replica.core
        term, index = self._acks.get((replica.shard, core.replica), (0, 0))
        if core.term == term and index > core.log.persisted_index and not replica.installing:
            self._breach(
                f"broken word: replica {core.replica} of shard {replica.shard} acknowledged {index} in term {term}, and its "
                f"log is {core.log!r}"
            )

    # -- over a crash --------------------------------------------------------------------------------------------------

    def died(self, node: Node) -> None:
        for replica in node.shards.replicas.values():
            core, log = replica.core, replica.core.log
            if replica.installing:  # between two states; whatever comes back is judged by what was said
                self._held.pop((replica.shard, core.replica), None)
                continue
            index = log.persisted_index
            owner, applied = node.state.durable_applied.get(replica.shard, (0, 0))
            durable = applied if owner == core.replica else 0
            self._held[replica.shard, core.replica] = Held(
                node.config.node, core.durable_term, index, log.term_at(index) or 0, durable
            )

    def born(self, node: Node) -> None:
        for replica in node.shards.replicas.values():
            held = self._held.pop((replica.shard, replica.core.replica), None)
            if held is not None:
                self._compare(node, replica, held)
            self.look(replica)

    def _compare(self, node: Node, replica: Replica, held: Held) -> None:
        core, log = replica.core, replica.core.log
        who = f"{node.config.node} has lost what it held for durable: shard {replica.shard}"
        if core.term < held.term:
            self._breach(f"{who} is in term {core.term}, was in {held.term}")
        if log.base_index <= held.last_index and log.term_at(held.last_index) != held.last_term:
            self._breach(f"{who} has {log!r}, had {held.last_index} of term {held.last_term}")
        voted = self._votes.get((replica.shard, core.replica, core.term), core.vote)
        if core.vote != voted:
            self._breach(f"{who} has voted for {core.vote} in term {core.term}, had told {voted} that it votes for it")
        if core.applied_index < held.applied:
            self._breach(f"{who} has applied {core.applied_index}, had {held.applied}")
