"""The only translator between the Raft core's messages and the wire's.

It runs for every message, so it sets only fields that differ from their default and never copies a payload itself.
`entry.parsed` stays at home: it belongs to the proposing leader.
"""

from __future__ import annotations

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, Message
from proto.gen import peer_pb2

FIELDS_BYTES_MAX = 128
"""No RaftMessage without entries and configuration is longer, its length prefix included: nine 64-bit and two 32-bit
numbers, two flags."""
ENTRY_BYTES_MAX = 32
"""No RaftEntry is longer than this and its payload, both length prefixes included."""


def to_wire(shard: int, message: Message) -> peer_pb2.RaftMessage:
    """A new wire message."""
    wire = peer_pb2.RaftMessage()
    fill(wire, shard, message)
    return wire


def fill(wire: peer_pb2.RaftMessage, shard: int, message: Message) -> None:
    """Writes `message` into an empty wire message, such as one just added to a frame."""
    if shard:
        wire.shard = shard
    wire.kind = message.kind
    wire.sender = message.sender
    wire.receiver = message.receiver
    wire.term = message.term
    if message.index:
        wire.index = message.index
    if message.log_term:
        wire.log_term = message.log_term
    if message.commit:
        wire.commit = message.commit
    if message.entries:
        add = wire.entries.add
        for entry in message.entries:
            add(term=entry.term, kind=entry.kind, payload=entry.payload)
    if message.reject:
        wire.reject = True
    if message.hint_index:
        wire.hint_index = message.hint_index
    if message.hint_term:
        wire.hint_term = message.hint_term
    if message.context:
        wire.context = message.context
    if message.flag:
        wire.flag = True
    if message.configuration is not None:
        wire.configuration = message.configuration.encode()


def from_wire(wire: peer_pb2.RaftMessage) -> Message:
    """The core's message; entries get their indexes from the message's."""
    index = wire.index
    entries = None
    if wire.entries:
        entries = [Entry(at, each.term, each.kind, each.payload) for at, each in enumerate(wire.entries, index + 1)]
    return Message(
        wire.kind,
        wire.sender,
        wire.receiver,
        wire.term,
        index,
        wire.log_term,
        wire.commit,
        entries,
        wire.reject,
        wire.hint_index,
        wire.hint_term,
        wire.context,
        wire.flag,
        Configuration.decode(wire.configuration) if wire.configuration else None,
    )


def size_bound(message: Message) -> int:
    """An upper bound of what the message takes inside a frame, in bytes, without building it."""
    size = FIELDS_BYTES_MAX
    if message.configuration is not None:
        size += ENTRY_BYTES_MAX + len(message.configuration.encode())
    for entry in message.entries:
        size += ENTRY_BYTES_MAX + len(entry.payload)
    return size
