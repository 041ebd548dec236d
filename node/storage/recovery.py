"""Reads the log back and judges its damage: what was torn is cut, what is corrupt puts a replica in quarantine.

The law (architecture, "storage"): a round is written only after the one before it was synced, so damage in any round but
the last is corruption. In the last round damage is a torn write, unless the machine has not restarted since (same boot
id): then the page cache survived, a torn write can only be a missing end, and a complete bad record is corruption too. A
corrupt record quarantines its shard where its header still tells which; otherwise every replica of the node is suspect.
After Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise

from cluster.ports import Disk, File
from node.storage.identity import DamagedIdentity, Identity
from node.storage.record import (
    ENTRY_KINDS,
    FRAME_BYTES,
    FRAME_MAGIC,
    RECORD_BYTES,
    Frame,
    FrameKind,
    Record,
    RecordKind,
    read_frame,
    read_record,
    read_voters,
)
from node.storage.replay import Recovered, Replay
from node.storage.segment import HEAD_BYTES, Segment, SegmentHead, read_head, segment_numbers
from node.storage.shard_log import ShardLog, from_checkpoint

SCAN_BYTES = 1 << 20


class Recovery:
    """Reads all segments in order. `discard` names per shard the index up to which entries need not be kept."""

    def __init__(self, disk: Disk, identity: Identity, discard: Mapping[int, int]) -> None:
        self._disk = disk
        self._identity = identity
        self._discard = discard
        self._found = Recovered()
        self._segment = Segment(0)

    def run(self) -> Recovered:
        """ForeignFile when the log is another cluster's, node's or of a newer format; StorageFailed when it cannot be
        read. Damage is no error."""
        found = self._found
        numbers = segment_numbers(self._disk)
        for before, after in pairwise(numbers):
            if after != before + 1:
                found.suspect_all(f"the log's segments {before + 1:x} to {after - 1:x} are missing")
        heads = self._read_heads(numbers)
        for number in numbers:
            self._segment = Segment(number)
            found.segments.append(self._segment)
            found.first_segment = number + 1
            head = heads[number]
            if head is None:
                found.suspect_all(f"{self._segment.path}: its head is damaged")
                continue
            following = heads.get(number + 1)
            file = self._disk.open(self._segment.path)
            try:
                self._read_segment(file, head, following.first_round if following else None, number == numbers[-1])
            finally:
                file.close()
            for replay in found.shards.values():
                replay.trim()
        if found.suspect:
            found.suspect_all(found.suspect)
        if found.again is None:
            found.checkpoint = [replay.log.copy() for replay in found.shards.values()]
            found.checkpoint_suspect = found.suspect
        return found

    def _read_heads(self, numbers: list[int]) -> dict[int, SegmentHead | None]:
        heads: dict[int, SegmentHead | None] = {}
        for number in numbers:
            file = self._disk.open(Segment(number).path)
            try:
                heads[number] = read_head(file, number, self._identity)
            except DamagedIdentity:
                heads[number] = None
            finally:
                file.close()
        return heads

    # -- one segment ---------------------------------------------------------------------------------------------------

    def _read_segment(self, file: File, head: SegmentHead, limit: int | None, last: bool) -> None:
        """The rounds of one segment up to `limit`, the first round of the next one (None: unknown or none)."""
        found, path = self._found, self._segment.path
        frames, end = self._frames(file, head, HEAD_BYTES, limit)
        followed = False  # a round was begun after the last whole one, so that one was synced
        if end < file.size() and (limit is None or not frames or frames[-1].number < limit - 1):
            later = self._search(file, head, end + 1)
            if later is not None:
                found.suspect_all(f"{path}: damage at byte {end}, before an intact round")
                frames += self._frames(file, head, later, limit)[0]
            elif last:
                followed = not self._is_blank(file, end)
                found.cut_bytes = file.size() - end
                if followed and not self._is_torn(file, head, end):
                    found.suspect_all(f"{path}: damage at byte {end}")
        if not frames or frames[0].kind != FrameKind.CHECKPOINT or frames[0].number != head.first_round - 1:
            found.suspect_all(f"{path}: its checkpoint is damaged")
        if limit is not None and (not frames or frames[-1].number != limit - 1):
            found.suspect_all(f"{path}: ends before round {limit - 1}")
        for position, frame in enumerate(frames):
            body = file.read(frame.offset + FRAME_BYTES, frame.length)
            final = last and position == len(frames) - 1 and not followed
            if frame.kind == FrameKind.CHECKPOINT:
                self._checkpoint(frame, body)
            else:
                self._round(frame, body, final, self._same_boot(head))

    def _frames(self, file: File, head: SegmentHead, offset: int, limit: int | None) -> tuple[list[Frame], int]:
        """The frames from `offset` on that are whole and follow one another, and where the next would begin."""
        frames: list[Frame] = []
        size, salt = file.size(), head.salt
        while True:
            frame = read_frame(file.read(offset, FRAME_BYTES), salt, offset)
            if frame is None or frame.end > size or (limit is not None and frame.number >= limit):
                return frames, offset
            if frames and frame.number != frames[-1].number + 1:
                return frames, offset
            frames.append(frame)
            offset = frame.end

    def _search(self, file: File, head: SegmentHead, offset: int) -> int | None:
        """Where the first whole frame after `offset` begins."""
        size = file.size()
        while offset < size:
            window = file.read(offset, SCAN_BYTES + FRAME_BYTES)
            at = window.find(FRAME_MAGIC)
            while at >= 0 and at < SCAN_BYTES:
                frame = read_frame(window, head.salt, offset + at, at)
                if frame is not None and frame.end <= size:
                    return offset + at
                at = window.find(FRAME_MAGIC, at + 1)
            offset += SCAN_BYTES
        return None

    def _is_blank(self, file: File, offset: int) -> bool:
        """Only zeros lie from `offset` on: the size was durable, and nothing else was written."""
        return not any(any(file.read(at, SCAN_BYTES)) for at in range(offset, file.size(), SCAN_BYTES))

    def _is_torn(self, file: File, head: SegmentHead, offset: int) -> bool:
        """Whether what lies from `offset` on can be the rest of a write that never ended."""
        if not self._same_boot(head) or file.size() - offset < FRAME_BYTES:
            return True
        return read_frame(file.read(offset, FRAME_BYTES), head.salt, offset) is not None

    def _same_boot(self, head: SegmentHead) -> bool:
        return bool(self._identity.boot_id) and head.identity.boot_id == self._identity.boot_id

    # -- one frame -----------------------------------------------------------------------------------------------------

    def _round(self, frame: Frame, body: bytes, final: bool, same_boot: bool) -> None:
        found = self._found
        good = final and self._is_whole(frame, body)
        if final and not good and not same_boot:
            found.cut_bytes += FRAME_BYTES + frame.length
            return
        if good:
            found.again = (frame, body)
            found.checkpoint = [replay.log.copy() for replay in found.shards.values()]
            found.checkpoint_suspect = found.suspect
        if frame.number != found.next_round:
            found.suspect_all(f"{self._segment.path}: round {frame.number} where {found.next_round} was expected")
        elif frame.sequence != found.next_sequence:
            found.suspect_all(f"{self._segment.path}: record {frame.sequence}, expected {found.next_sequence}")
        found.next_round = frame.number + 1
        found.next_sequence = frame.sequence + frame.records
        for record in self._records(frame, body):
            self._take(record)

    def _is_whole(self, frame: Frame, body: bytes) -> bool:
        at = 0
        for sequence in range(frame.sequence, frame.sequence + frame.records):
            record = read_record(body, at, sequence)
            if record is None or not record.intact:
                return False
            at += RECORD_BYTES + len(record.payload)
        return at == len(body)

    def _records(self, frame: Frame, body: bytes) -> list[Record]:
        """The intact records of a frame. A damaged one quarantines its shard, or every shard when it cannot be told."""
        found, at = self._found, 0
        records: list[Record] = []
        where = f"{self._segment.path}: round {frame.number}"
        for sequence in range(frame.sequence, frame.sequence + frame.records):
            record = read_record(body, at, sequence)
            if record is None:
                found.suspect_all(
                    f"{where}: the header of a record is damaged at byte {frame.offset + FRAME_BYTES + at}"
                )
                return records
            at += RECORD_BYTES + len(record.payload)
            if record.intact:
                records.append(record)
            elif record.kind == RecordKind.SUSPECT:
                found.suspect_all(f"{where}: a mark is damaged")
            else:
                reason = f"{where}: the record of entry {record.index} is damaged"
                self._of(record, reason).quarantine(reason)
        if at != len(body):
            found.suspect_all(f"{where}: {len(body) - at} bytes too many")
        return records

    def _of(self, record: Record, reason: str) -> Replay:
        """The shard of a record; a shard that has no beginning in the log is quarantined."""
        replay = self._found.shards.get(record.shard)
        if replay is None or replay.log.replica != record.replica:
            replay = self._begin(ShardLog(record.shard, record.replica, read_voters(b"\0\0\0\0")[0]))
            replay.quarantine(reason)
        return replay

    def _begin(self, log: ShardLog) -> Replay:
        replay = Replay(log, self._discard.get(log.shard, 0))
        if self._found.suspect:
            replay.quarantine(self._found.suspect)
        self._found.shards[log.shard] = replay
        return replay

    def _take(self, record: Record) -> None:
        kind, shard = record.kind, record.shard
        where = f"{self._segment.path}: entry {record.index}"
        if kind == RecordKind.SUSPECT:
            self._found.suspect_all(record.payload.decode())
            return
        try:
            if kind == RecordKind.BEGIN:
                self._begin(ShardLog(shard, record.replica, read_voters(record.payload)[0]))
                return
            replay = self._of(record, f"{where} of a replica that has no beginning in the log")
            if kind < ENTRY_KINDS:
                highest = self._segment.highest
                highest[shard] = max(record.index, highest.get(shard, 0))
                replay.entry(record)
            elif kind == RecordKind.HARD_STATE:
                replay.hard_state(record)
            elif kind == RecordKind.BASE:
                replay.base(record)
            elif kind == RecordKind.QUARANTINE:
                replay.quarantine(record.payload.decode())
            else:
                self._found.suspect_all(f"{where}: a record of unknown kind {kind}")
        except (
            struct.error,
            UnicodeDecodeError,
        ) as error:  # the CRC holds and the content does not: a bug or an attack
            self._found.suspect_all(f"{where}: {error}")

    def _checkpoint(self, frame: Frame, body: bytes) -> None:
        """The first one found gives the shards; a later one must agree with what was read."""
        found, first = self._found, len(self._found.segments) == 1
        if first:
            found.next_round, found.next_sequence = frame.number + 1, frame.sequence
        elif frame.sequence != found.next_sequence and not found.suspect:
            found.suspect_all(f"{self._segment.path}: record {frame.sequence}, expected {found.next_sequence}")
        found.next_round = max(found.next_round, frame.number + 1)
        found.next_sequence = max(found.next_sequence, frame.sequence)
        for record in self._records(frame, body):
            if record.kind == RecordKind.SUSPECT:
                found.suspect_all(record.payload.decode())
                continue
            line = from_checkpoint(record.shard, record.replica, record.index, record.term, record.payload)
            known = found.shards.get(record.shard)
            if known is not None:
                known.adopt(line)
                continue
            if not first:
                line.quarantine = line.quarantine or f"{self._segment.path}: a shard that earlier segments do not know"
            line.base_index, line.base_term = line.last_index, line.last_term  # what lay below was released
            self._begin(line)
