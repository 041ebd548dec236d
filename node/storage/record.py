"""The bytes of the log: frames that hold a numbered round, and the records in them.

A frame has a header (kind, number, its own offset in the file, sequence of its first record, count and length of what
follows) with a CRC. A record has a header (per-node sequence, shard, kind, replica id, index, term, length and CRC of its
payload) with a CRC of its own, so that a damaged payload still tells whose it is, and the next record is still found.
The frame's CRC is salted with the segment, and the offset is checked: log bytes stored as a user's value never look
like a frame of this log. All integers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry

FRAME_MAGIC = b"\xf4RND"


class FrameKind(IntEnum):
    ROUND = 1
    CHECKPOINT = 2  # opens a segment: the state of all shards after the round of that number


class RecordKind(IntEnum):
    """Below 128 a record is an entry and its kind is the entry's."""

    HARD_STATE = 128
    BASE = 129  # the shard's log begins after this point; every entry it had is gone
    BEGIN = 130  # a new replica, with nothing in its log
    QUARANTINE = 131
    CHECKPOINT = 132
    SUSPECT = 133  # damage whose shard could not be read was found before; shard 0 and replica 0 are meaningless here
    DROP = 134  # the replica was here and is no more; its id, and none below it, begins here again


_FRAME = struct.Struct("<4sBxxxQQQII")
_RECORD = struct.Struct("<QHBxQQQII")
_CRC = struct.Struct("<I")
FRAME_BYTES = _FRAME.size + _CRC.size
RECORD_BYTES = _RECORD.size + _CRC.size
ENTRY_KINDS = 128

_pack_record = _RECORD.pack
_pack_crc = _CRC.pack


class Frame(NamedTuple):
    kind: int
    number: int
    offset: int
    sequence: int  # of its first record
    records: int
    length: int  # bytes after the header

    @property
    def end(self) -> int:
        return self.offset + FRAME_BYTES + self.length


@dataclass(slots=True)
class Record:
    shard: int
    kind: int
    replica: int
    index: int
    term: int
    payload: bytes
    intact: bool  # False: the header holds but the payload does not

    @property
    def bytes(self) -> int:
        return RECORD_BYTES + len(self.payload)


def pack_frame(frame: Frame, salt: int) -> bytes:
    head = _FRAME.pack(FRAME_MAGIC, *frame)
    return head + _pack_crc(crc32(head, salt))


def read_frame(data: bytes, salt: int, offset: int, at: int = 0) -> Frame | None:
    """The frame whose header lies at `at` of `data` and at `offset` of the file; None when these bytes are none."""
    if len(data) - at < FRAME_BYTES or data[at : at + 4] != FRAME_MAGIC:
        return None
    if crc32(data[at : at + _FRAME.size], salt) != _CRC.unpack_from(data, at + _FRAME.size)[0]:
        return None
    frame = Frame(*_FRAME.unpack_from(data, at)[1:])
    return frame if frame.offset == offset else None


def pack_record(
    sequence: int, shard: int, kind: int, replica: int, index: int, term: int, payload: bytes
) -> tuple[bytes, bytes]:
    """Header and payload, to be written one after the other."""
    head = _pack_record(sequence, shard, kind, replica, index, term, len(payload), crc32(payload))
    return head + _pack_crc(crc32(head)), payload


def pack_entries(pieces: list[bytes], sequence: int, shard: int, replica: int, entries: list[Entry]) -> int:
    """Adds the records of one shard's entries to `pieces`; their bytes. The loop of the hot path."""
    total = RECORD_BYTES * len(entries)
    add = pieces.append
    for entry in entries:
        payload = entry.payload
        size = len(payload)
        head = _pack_record(sequence, shard, entry.kind, replica, entry.index, entry.term, size, crc32(payload))
        add(head)
        add(_pack_crc(crc32(head)))
        add(payload)
        sequence += 1
        total += size
    return total


def read_record(body: bytes, at: int, sequence: int) -> Record | None:
    """The record at `at` of a frame's body; None when its header is damaged or not the one of that sequence."""
    end = at + RECORD_BYTES
    if end > len(body) or crc32(body[at : at + _RECORD.size]) != _CRC.unpack_from(body, at + _RECORD.size)[0]:
        return None
    found, shard, kind, replica, index, term, size, check = _RECORD.unpack_from(body, at)
    if found != sequence or end + size > len(body):
        return None
    payload = body[end : end + size]
    return Record(shard, kind, replica, index, term, payload, crc32(payload) == check)


_HARD_STATE = struct.Struct("<QQ")
pack_hard_state = _HARD_STATE.pack
"""vote, commit (the term is the record's)."""
read_hard_state = _HARD_STATE.unpack

_CHECKPOINT = struct.Struct("<QQQQQI")


def pack_checkpoint(
    term: int, vote: int, commit: int, base_index: int, base_term: int, configuration: Configuration, quarantine: str
) -> bytes:
    """One shard's line of a checkpoint; its last index and term are the record's."""
    members = configuration.encode()
    fixed = _CHECKPOINT.pack(term, vote, commit, base_index, base_term, len(members))
    return fixed + members + quarantine.encode()


def read_checkpoint(data: bytes) -> tuple[tuple[int, int, int, int, int], Configuration, str]:
    """struct.error or ValueError when it is none."""
    *numbers, size = _CHECKPOINT.unpack_from(data)
    end = _CHECKPOINT.size + size
    term, vote, commit, base_index, base_term = numbers
    configuration = Configuration.decode(data[_CHECKPOINT.size : end])
    return (term, vote, commit, base_index, base_term), configuration, data[end:].decode()
