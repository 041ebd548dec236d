"""Every Raft message survives the wire, and its size is never underestimated."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, Message, MessageKind
from cluster.types import EntryKind
from node.transport.codec import fill, from_wire, size_bound, to_wire
from proto.gen import peer_pb2

U64 = (1 << 64) - 1
numbers = st.one_of(st.integers(0, 3), st.integers(0, U64))
shards = st.one_of(st.integers(0, 12), st.integers(0, (1 << 32) - 1))
replica_ids = st.lists(numbers, max_size=7).map(tuple)
configurations = st.builds(Configuration, replica_ids, replica_ids, replica_ids, numbers)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    index = draw(st.integers(0, U64 - 16))
    entries = [
        Entry(
            index + at, draw(numbers), draw(st.sampled_from(EntryKind)), draw(st.binary(max_size=200)), parsed=object()
        )
        for at in range(1, draw(st.integers(0, 5)) + 1)
    ]
    return Message(
        draw(st.sampled_from(MessageKind)),
        draw(numbers),
        draw(numbers),
        draw(numbers),
        index,
        draw(numbers),
        draw(numbers),
        entries,
        draw(st.booleans()),
        draw(numbers),
        draw(numbers),
        draw(numbers),
        draw(st.booleans()),
        draw(st.none() | configurations),
    )


def fields(message: Message) -> list[object]:
    return [getattr(message, name) for name in Message.__slots__]


LARGEST = Message(10, U64, U64, U64, U64 - 9, U64, U64, [Entry(U64, U64, 6, b"")], True, U64, U64, U64, True)
VALUES = {"reject": True, "flag": True, "configuration": Configuration((1, U64), (3,), (4, 5), U64)}


@given(shards, messages())
@example((1 << 32) - 1, LARGEST)
def test_round_trip(shard: int, message: Message) -> None:
    wire = peer_pb2.RaftMessage.FromString(to_wire(shard, message).SerializeToString())
    back = from_wire(wire)
    expected = fields(message)
    if message is LARGEST:  # its entry's index is not its place
        back.entries[0].index = U64
    assert wire.shard == shard
    assert fields(back) == expected
    assert all(each.parsed is None for each in back.entries)


@given(shards, messages())
@example((1 << 32) - 1, LARGEST)
def test_the_bound_covers_what_a_message_adds_to_a_frame(shard: int, message: Message) -> None:
    frame = peer_pb2.Frame()
    fill(frame.messages.add(), shard, message)
    assert frame.ByteSize() <= size_bound(message)


def test_defaults_take_no_bytes() -> None:
    assert to_wire(0, Message(MessageKind.APPEND_REPLY, 1, 2, 3)).ByteSize() == 8


@pytest.mark.parametrize("name", [n for n in Message.__slots__ if n != "entries"])
def test_each_field_has_a_place_of_its_own(name: str) -> None:
    message = Message(MessageKind.APPEND, 1, 2, 3)
    setattr(message, name, VALUES.get(name, 99))
    assert fields(from_wire(to_wire(1, message))) == fields(message)


def test_a_configuration_without_members_travels_too() -> None:
    message = Message(MessageKind.SNAPSHOT, 1, 2, 3, configuration=Configuration(()))
    assert from_wire(to_wire(1, message)).configuration == Configuration(())
