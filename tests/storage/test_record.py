"""Frames and records: round trips, and no damaged byte goes unseen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry
from node.storage.record import (
    FRAME_BYTES,
    RECORD_BYTES,
    Frame,
    FrameKind,
    pack_checkpoint,
    pack_entries,
    pack_frame,
    pack_record,
    read_checkpoint,
    read_frame,
    read_record,
)

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


@given(u64, st.integers(0, 65535), st.integers(0, 255), u64, u64, u64, st.binary(max_size=200))
def test_a_record_comes_back(
    sequence: int, shard: int, kind: int, replica: int, index: int, term: int, payload: bytes
) -> None:
    body = b"??" + b"".join(pack_record(sequence, shard, kind, replica, index, term, payload))
    found = read_record(body, 2, sequence)
    assert found is not None and found.intact
    assert (found.shard, found.kind, found.replica, found.index, found.term) == (shard, kind, replica, index, term)
    assert found.payload == payload
    assert read_record(body, 2, (sequence + 1) % 2**64) is None


def test_every_flipped_bit_of_a_record_is_seen() -> None:
    whole = b"".join(pack_record(7, 3, 0, 11, 5, 2, b"payload"))
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        found = read_record(bytes(damaged), 0, 7)
        if bit // 8 < RECORD_BYTES:
            assert found is None
        else:
            assert found is not None and not found.intact and (found.shard, found.index) == (3, 5)


@given(st.lists(st.binary(max_size=50), max_size=20), u32)
def test_the_hot_path_packs_the_same_bytes(payloads: list[bytes], first: int) -> None:
    entries = [Entry(first + n, 3, 1, payload) for n, payload in enumerate(payloads)]
    pieces: list[bytes] = []
    size = pack_entries(pieces, 40, 2, 9, entries)
    expected = b"".join(
        piece for n, each in enumerate(entries) for piece in pack_record(40 + n, 2, 1, 9, each.index, 3, each.payload)
    )
    assert b"".join(pieces) == expected and size == len(expected)


@given(u64, u64, u64, u32, u32, u32)
def test_a_frame_is_read_only_where_it_was_written(
    number: int, offset: int, sequence: int, records: int, length: int, salt: int
) -> None:
    frame = Frame(FrameKind.ROUND, number, offset, sequence, records, length)
    data = pack_frame(frame, salt)
    assert len(data) == FRAME_BYTES and read_frame(data, salt, offset) == frame
    assert read_frame(data, salt, offset + 1) is None
    assert read_frame(data, salt ^ 1, offset) is None
    assert read_frame(data[:-1], salt, offset) is None


def test_every_flipped_bit_of_a_frame_is_seen() -> None:
    whole = pack_frame(Frame(FrameKind.ROUND, 1, 2, 3, 4, 5), 99)
    for bit in range(len(whole) * 8):
        if bit // 8 in (5, 6, 7):
            continue  # padding: covered by the CRC as well, tested by the loop below
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        assert read_frame(bytes(damaged), 99, 2) is None
    for byte in (5, 6, 7):
        damaged = bytearray(whole)
        damaged[byte] ^= 1
        assert read_frame(bytes(damaged), 99, 2) is None


@given(u64, u64, u64, u64, u64, st.lists(u64, max_size=7), st.text(max_size=30))
def test_a_checkpoint_comes_back(
    term: int, vote: int, commit: int, base: int, base_term: int, voters: list[int], quarantine: str
) -> None:
    configuration = Configuration(tuple(voters))
    line = pack_checkpoint(term, vote, commit, base, base_term, configuration, quarantine)
    assert read_checkpoint(line) == ((term, vote, commit, base, base_term), configuration, quarantine)
