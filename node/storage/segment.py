"""One file of the log: its name, its head, and how it comes to be.

Law: a segment is written under a temporary name, synced, renamed, and its directory synced before the first round in it
counts. It opens with a checkpoint of all shards after the round before `first_round`; whatever an older segment holds
from `first_round` on is superseded (a tail that recovery cut).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

from cluster.ports import Disk, DiskFull, File, StorageFailed
from node.storage.failpoints import failpoint
from node.storage.identity import BYTES, LOG, DamagedIdentity, Identity, read_identity
from node.storage.record import Frame, FrameKind, RecordKind, pack_frame, pack_record
from node.storage.shard_log import ShardLog

DIRECTORY = "log"
_SUFFIX = ".log"
_TEMPORARY = ".tmp"
_HEAD = struct.Struct("<QQQ")
_CHECK = struct.Struct("<I")
HEAD_BYTES = BYTES + _HEAD.size + _CHECK.size


@dataclass(slots=True)
class Segment:
    """A segment that lies on disk. `highest` holds the highest log index per (shard, replica) that was appended to it."""

    number: int
    highest: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return path_of(self.number)


@dataclass(frozen=True, slots=True)
class SegmentHead:
    identity: Identity
    number: int
    first_round: int
    first_sequence: int

    def encode(self) -> bytes:
        head = self.identity.encode(LOG) + _HEAD.pack(self.number, self.first_round, self.first_sequence)
        return head + _CHECK.pack(crc32(head))

    @property
    def salt(self) -> int:
        return crc32(self.encode())


def path_of(number: int) -> str:
    return f"{DIRECTORY}/{number:016x}{_SUFFIX}"


def read_head(file: File, number: int, expected: Identity) -> SegmentHead:
    """ForeignFile; DamagedIdentity when the head is damaged or another segment's."""
    path = path_of(number)
    data = file.read(0, HEAD_BYTES)
    identity = read_identity(LOG, data, path, expected)
    if len(data) < HEAD_BYTES or crc32(data[: -_CHECK.size]) != _CHECK.unpack_from(data, HEAD_BYTES - _CHECK.size)[0]:
        raise DamagedIdentity(f"{path}: the head of the segment is damaged")
    head = SegmentHead(identity, *_HEAD.unpack_from(data, BYTES))
    if head.number != number:
        raise DamagedIdentity(f"{path}: holds segment {head.number}")
    return head


def segment_numbers(disk: Disk) -> list[int]:
    """The segments that lie there, oldest first; leftovers under temporary names are removed."""
    numbers = []
    for name in disk.list(DIRECTORY):
        if name.endswith(_TEMPORARY):
            disk.remove(f"{DIRECTORY}/{name}")
        elif name.endswith(_SUFFIX):
            numbers.append(int(name.removesuffix(_SUFFIX), 16))
    return sorted(numbers)


def checkpoint_frame(
    head: SegmentHead, shards: Iterable[ShardLog], dropped: Mapping[int, int], suspect: str
) -> list[bytes]:
    """The checkpoint that follows the head: all shards as they were before `first_round`, and who was dropped."""
    pieces: list[bytes] = [b""]
    sequence = head.first_sequence
    for number, replica in dropped.items():
        pieces += pack_record(sequence, number, RecordKind.DROP, replica, 0, 0, b"")
        sequence += 1
    for shard in shards:
        pieces += shard.checkpoint(sequence)
        sequence += 1
    if suspect:
        pieces += pack_record(sequence, 0, RecordKind.SUSPECT, 0, 0, 0, suspect.encode())
        sequence += 1
    records, length = sequence - head.first_sequence, sum(map(len, pieces))
    frame = Frame(FrameKind.CHECKPOINT, head.first_round - 1, HEAD_BYTES, head.first_sequence, records, length)
    pieces[0] = pack_frame(frame, head.salt)
    return pieces


async def create_segment(disk: Disk, head: SegmentHead, frames: list[bytes]) -> File:
    """The new segment, open for appending and durable with its name. On failure nothing of it counts."""
    path = path_of(head.number)
    temporary = path.removesuffix(_SUFFIX) + _TEMPORARY
    if disk.exists(temporary):
        disk.remove(temporary)
    file = disk.create(temporary)
    failpoint("segment.created")
    try:
        file.append([head.encode(), *frames])
        failpoint("segment.written")
        await file.sync()
        failpoint("segment.synced")
        disk.rename(temporary, path)
        failpoint("segment.renamed")
        try:
            disk.sync_directory(DIRECTORY)
        except DiskFull as error:  # the name is there, perhaps for good: going on in the old segment would be lost
            raise StorageFailed(str(error)) from error
        failpoint("segment.durable")
    except BaseException:
        file.close()
        raise
    return file
