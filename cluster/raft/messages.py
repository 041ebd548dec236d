"""What goes into and comes out of the Raft core: small slotted classes, built on the hot path, never frozen.

Names follow the thesis (Ongaro 2014); the split of outgoing messages into "now" and "after the sync" follows etcd's raft.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from cluster.raft.configuration import Configuration
from cluster.types import EntryKind


class Entry:
    """One log entry. `payload` is opaque to Raft; `parsed` is what the proposing leader keeps for its own apply and is
    never sent, stored or compared."""

    __slots__ = ("index", "kind", "parsed", "payload", "term")

    def __init__(self, index: int, term: int, kind: int, payload: bytes, parsed: Any = None) -> None:
        self.index = index
        self.term = term
        self.kind = kind
        self.payload = payload
        self.parsed = parsed

    def __repr__(self) -> str:
        return f"{self.index}/{self.term} {EntryKind(self.kind).name} {self._readable()}"

    def _readable(self) -> str:
        if self.kind == EntryKind.CONFIG:
            with suppress(ValueError):
                return str(Configuration.decode(self.payload))
        return repr(self.payload)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and (self.index, self.term, self.kind, self.payload) == (
            other.index,
            other.term,
            other.kind,
            other.payload,
        )

    __hash__ = None  # type: ignore[assignment]


class MessageKind(IntEnum):
    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    SNAPSHOT = 9  # on the bulk channel; the driver streams the state
    TIMEOUT_NOW = 10


class Message:
    """One message between replicas of a shard; replica ids, not node names.

    APPEND: `index`/`log_term` precede the entries. APPEND_REPLY: `index` is the last index known to match, or with
    `reject` the index refused, and `hint_index`/`hint_term` say where to go on. VOTE: `index`/`log_term` of the
    candidate's last entry, `flag` for a leadership transfer. HEARTBEAT: `commit` (never above what the receiver is known
    to hold), `flag`: the leader falls silent. SNAPSHOT: `index`/`log_term` of the snapshot, and the `configuration` at that
    index. `hint_index` of APPEND and HEARTBEAT: who has applied it holds all that was acknowledged when it was sent;
    `context` is the leader's stamp of sending, which the reply gives back: it confirms reads and carries the lease.
    """

    __slots__ = (
        "commit",
        "configuration",
        "context",
        "entries",
        "flag",
        "hint_index",
        "hint_term",
        "index",
        "kind",
        "log_term",
        "receiver",
        "reject",
        "sender",
        "term",
    )

    def __init__(
        self,
        kind: int,
        sender: int,
        receiver: int,
        term: int,
        index: int = 0,
        log_term: int = 0,
        commit: int = 0,
        entries: list[Entry] | None = None,
        reject: bool = False,
        hint_index: int = 0,
        hint_term: int = 0,
        context: int = 0,
        flag: bool = False,
        configuration: Configuration | None = None,
    ) -> None:
        self.kind = kind
        self.sender = sender
        self.receiver = receiver
        self.term = term
        self.index = index
        self.log_term = log_term
        self.commit = commit
        self.entries = entries or []
        self.reject = reject
        self.hint_index = hint_index
        self.hint_term = hint_term
        self.context = context
        self.flag = flag
        self.configuration = configuration

    def __repr__(self) -> str:
        fields = (
            f"{n}={getattr(self, n)}" for n in ("index", "log_term", "commit", "hint_index", "hint_term", "context")
        )
        return " ".join(
            [f"{MessageKind(self.kind).name} {self.sender}->{self.receiver} term={self.term}"]
            + [f for f in fields if not f.endswith("=0")]
            + (["reject"] if self.reject else [])
            + (["flag"] if self.flag else [])
            + ([f"configuration={self.configuration}"] if self.configuration is not None else [])
            + ([f"entries={self.entries}"] if self.entries else [])
        )


@dataclass(slots=True)
class HardState:
    """Durable before any message that depends on it leaves. `vote` 0: none in this term. `commit` may lag."""

    term: int = 0
    vote: int = 0
    commit: int = 0


@dataclass(slots=True)
class SnapshotPoint:
    """Where a snapshot stands, and the configuration in force there."""

    index: int
    term: int
    configuration: Configuration


@dataclass(slots=True)
class ReadState:
    """A read may be answered once `index` is applied. `index` -1: leadership was lost before it was confirmed."""

    context: int
    index: int


class ConfigurationRefused(Exception):
    """This leader may not make that change now; why, in words. Surely without effect."""


class NotLeader(Exception):
    """This replica cannot take it now: it does not lead, or is handing leadership over. `leader` is the replica to ask,
    0 if unknown. Surely without effect."""

    def __init__(self, leader: int) -> None:
        super().__init__(f"not the leader; the leader is {leader or 'unknown'}")
        self.leader = leader


@dataclass(slots=True)
class Ready:
    """What the driver must do, in this order: install `snapshot` (its state becomes current and durable, the log base
    moves to it); append `entries` (each replaces what lies at or above its index) and `hard_state` to the log; send
    `messages_now` before or during the sync; sync if `must_sync`; call `core.persisted(...)`; send `messages_after`;
    apply `committed`; answer `read_states` once their index is applied."""

    entries: list[Entry] = field(default_factory=list)
    hard_state: HardState | None = None
    messages_now: list[Message] = field(default_factory=list)
    messages_after: list[Message] = field(default_factory=list)
    committed: list[Entry] = field(default_factory=list)
    read_states: list[ReadState] = field(default_factory=list)
    snapshot: SnapshotPoint | None = None
    must_sync: bool = False
