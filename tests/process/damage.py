"""One bit flipped in the files of a node that does not run: in its log where a record of a kind lies, in its state where a value does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.local.layout import Layout
from node.storage.disk import RealDisk
from node.storage.identity import Identity
from node.storage.record import (
    ENTRY_KINDS,
    FRAME_BYTES,
    RECORD_BYTES,
    FrameKind,
    Record,
    RecordKind,
    read_frame,
    read_record,
)
from node.storage.segment import HEAD_BYTES, path_of, read_head, segment_numbers


class Place(NamedTuple):
    path: Path
    byte: int


def flip(place: Place) -> None:
    """One bit of that byte, on disk."""
    with place.path.open("r+b") as file:
        file.seek(place.byte)
        (old,) = file.read(1)
        file.seek(place.byte)
        file.write(bytes([old ^ 0x10]))


def entry_of(shard: int) -> Callable[[Record], bool]:
    return lambda record: record.shard == shard and record.kind < ENTRY_KINDS and len(record.payload) > 0


def hard_state_of(shard: int) -> Callable[[Record], bool]:
    return lambda record: record.shard == shard and record.kind == RecordKind.HARD_STATE


def in_log(layout: Layout, node: str, wanted: Callable[[Record], bool]) -> Place:
    """The middle of the payload of the last record that is wanted, but not in the last round: there it might be a torn tail."""
    directory = layout.node_directory(node)
    found: list[tuple[int, Place]] = []
    last = 0
    for number, record, place in _records(directory, Identity(bytes.fromhex(layout.read().cluster_id), node)):
        last = max(last, number)
        if wanted(record):
            found.append((number, place))
    return [place for number, place in found if number < last][-1]


def _records(directory: Path, identity: Identity) -> Iterator[tuple[int, Record, Place]]:
    """The records of the rounds, each with its round's number and the place of its payload."""
    disk = RealDisk(directory)
    try:
        for segment in segment_numbers(disk):
            path = directory / path_of(segment)
            data = path.read_bytes()
            salt = read_head(disk.open(path_of(segment)), segment, identity).salt
            offset = HEAD_BYTES
            while (frame := read_frame(data, salt, offset, offset)) is not None:
                body, at = data[offset + FRAME_BYTES : frame.end], 0
                for sequence in range(frame.sequence, frame.sequence + frame.records):
                    record = read_record(body, at, sequence)
                    assert record is not None and record.intact, "the node was whole"
                    place = Place(path, offset + FRAME_BYTES + at + RECORD_BYTES + len(record.payload) // 2)
                    at += record.bytes
                    if frame.kind == FrameKind.ROUND:
                        yield frame.number, record, place
                offset = frame.end
    finally:
        disk.close()


def in_state(layout: Layout, node: str, value: bytes) -> Place:
    """Inside `value`, which the node's state holds in a table file."""
    for path in sorted((layout.node_directory(node) / "state").glob("*.sst")):
        if (at := path.read_bytes().find(value)) >= 0:
            return Place(path, at + len(value) // 2)
    raise AssertionError("no table file holds the value")
