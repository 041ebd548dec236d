"""One core alone, fed by hand: for rules that are about a single message."""

from __future__ import annotations

import random

from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore
from cluster.raft.log import RaftLog
from cluster.raft.messages import Entry, HardState, Message, MessageKind, Ready
from cluster.types import EntryKind, Role
from tests.raft.network import small_settings


def entries(*terms: int, first: int = 1) -> list[Entry]:
    """One entry for each term; its payload names index and term, as equal positions hold equal entries."""
    return [
        Entry(index, term, EntryKind.NORMAL, f"{index}/{term}".encode())
        for index, term in enumerate(terms, start=first)
    ]


def config(index: int, term: int, configuration: Configuration) -> Entry:
    return Entry(index, term, EntryKind.CONFIG, configuration.encode())


class Solo:
    """Replica 1 of `voters` or of a configuration, with a log of the given terms, or the given one, that is durable."""

    def __init__(
        self,
        *terms: int,
        term: int = 0,
        vote: int = 0,
        commit: int = 0,
        applied: int = 0,
        voters: int = 3,
        configuration: Configuration | None = None,
        log: list[Entry] | None = None,
        **settings: int,
    ) -> None:
        log = log or entries(*terms)
        term = term or max((each.term for each in log), default=0)
        self.core = RaftCore(
            replica=1,
            configuration=configuration or Configuration(tuple(range(1, voters + 1))),
            hard_state=HardState(term, vote, commit),
            log=RaftLog(0, 0, log),
            applied_index=applied,
            settings=small_settings(**settings),
            random=random.Random(1),
        )

    def message(self, kind: MessageKind, sender: int = 2, term: int = 0, **fields: object) -> Message:
        if kind == MessageKind.SNAPSHOT:
            fields.setdefault("configuration", self.core.configuration)
        return Message(kind, sender, 1, term or self.core.term, **fields)  # type: ignore[arg-type]

    def step(self, kind: MessageKind, sender: int = 2, term: int = 0, **fields: object) -> list[Message]:
        """Steps one message and returns what it makes the core say."""
        self.core.step(self.message(kind, sender, term, **fields))
        return self.sync()

    def ready(self) -> Ready:
        self.core.check_invariants()
        return self.core.ready()

    def sync(self) -> list[Message]:
        """One whole round of the driver."""
        ready = self.ready()
        self.persist()
        if ready.committed:
            self.core.applied(ready.committed[-1].index)
        self.core.check_invariants()
        return ready.messages_now + ready.messages_after

    def persist(self) -> None:
        log = self.core.log
        self.core.persisted(log.handed_index, log.term_at(log.handed_index) or 0)

    def terms(self) -> list[int]:
        log = self.core.log
        return [log.term_at(index) or 0 for index in range(log.base_index + 1, log.last_index + 1)]

    def time_out(self) -> list[Message]:
        """Ticks until the core campaigns."""
        for _ in range(3 * self.core.settings.election_ticks_max):
            self.core.tick()
            if self.core.role is not Role.FOLLOWER:
                return self.sync()
        raise AssertionError("no election")

    def become_leader(self) -> list[Message]:
        """Through both rounds of an election; what it sends as the leader."""
        self.time_out()
        core = self.core
        for kind, term in ((MessageKind.PRE_VOTE_REPLY, core.term + 1), (MessageKind.VOTE_REPLY, core.term + 1)):
            for peer in core.peers:
                if core.role is not Role.LEADER:
                    core.step(self.message(kind, peer, term))
            sent = self.sync()
        assert core.role is Role.LEADER
        return sent

    def acknowledge(self, peer: int = 2, index: int | None = None) -> list[Message]:
        """The follower says that it holds everything up to `index`."""
        last = self.core.log.last_index
        context = self.core.progress[peer].sent
        return self.step(MessageKind.APPEND_REPLY, peer, index=last if index is None else index, context=context)


def of(messages: list[Message], kind: MessageKind, receiver: int = 0) -> list[Message]:
    return [each for each in messages if each.kind == kind and receiver in (0, each.receiver)]
