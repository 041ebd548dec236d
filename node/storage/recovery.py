"""Reads the log back and judges its damage: what was torn is cut, what is corrupt puts a replica in quarantine.

The law (architecture, "storage"): a round is written only after the one before it was synced, so damage in any round but
the last is corruption. In the last round damage is a torn write, unless the machine has not restarted since (same boot
id): then the page cache survived, a torn write can only be a missing end, and a complete bad record is corruption too. A
corrupt record quarantines its shard where its header still tells which; otherwise every replica known by then is suspect,
and what begins after the damage has nothing in it.
After Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from cluster.ports import Disk, File
from cluster.raft.configuration import Configuration
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
)
from node.storage.replay import Recovered, Replay
from node.storage.segment import HEAD_BYTES, Segment, SegmentHead, read_head, segment_numbers
from node.storage.shard_log import ShardLog, from_checkpoint

SCAN_BYTES = 1 << 20
OF_A_REPLICA = (RecordKind.HARD_STATE, RecordKind.BASE, RecordKind.QUARANTINE)


class Recovery:
    """Reads all segments in order. `discard` names per shard a replica and the index up to which its entries need not be
    kept; another replica's are kept."""

    def __init__(self, disk: Disk, identity: Identity, discard: Mapping[int, tuple[int, int]]) -> None:
        self._disk = disk
        self._identity = identity
        self._discard = discard
        self._found = Recovered()
        self._segment = Segment(0)

    def run(self) -> Recovered:
        """ForeignFile when the log is another cluster's, node's or of another format; StorageFailed when it cannot be
        read. Damage is no error."""
        found = self._found
        numbers = segment_numbers(self._disk)
        heads = self._read_heads(numbers)
        for number in numbers:
            if found.segments and number != found.first_segment:
                found.suspect_all(f"the log's segments {found.first_segment:x} to {number - 1:x} are missing")
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
        if found.again is None:
            found.mark()
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
        """The rounds of one segment up to `limit`, the first round of the next one (None: unknown or none). Whoever has
        begun before a place that is damaged becomes suspect by it."""
        found, path = self._found, self._segment.path
        frames, end = self._frames(file, head, HEAD_BYTES, limit)
        beyond: list[Frame] = []
        followed, damage = False, ""  # followed: a round was begun after the last whole one, so that one was synced
        if end < file.size() and (limit is None or not frames or frames[-1].number < limit - 1):
            later = self._search(file, head, end + 1)
            if later is not None:
                damage = f"{path}: damage at byte {end}, before an intact round"
                beyond = self._frames(file, head, later, limit)[0]
            elif last:
                followed = not self._is_blank(file, end)
                found.cut_bytes = file.size() - end
                if followed and not self._is_torn(file, head, end):
                    damage = f"{path}: damage at byte {end}"
        if not frames or frames[0].kind != FrameKind.CHECKPOINT or frames[0].number != head.first_round - 1:
            found.suspect_all(f"{path}: its checkpoint is damaged")
        final = (beyond or frames)[-1:] if last and not followed else []
        self._take_frames(file, head, frames, final)
        if damage:
            found.suspect_all(damage)
        self._take_frames(file, head, beyond, final)
        if limit is not None and [frame.number for frame in (*frames, *beyond)][-1:] != [limit - 1]:
            found.suspect_all(f"{path}: ends before round {limit - 1}")

    def _take_frames(self, file: File, head: SegmentHead, frames: list[Frame], final: list[Frame]) -> None:
        for frame in frames:
            body = file.read(frame.offset + FRAME_BYTES, frame.length)
            if frame.kind == FrameKind.CHECKPOINT:
                self._checkpoint(frame, body)
            else:
                self._round(frame, body, frame in final, self._same_boot(head))

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
        if frame.number != found.next_round:
            found.suspect_all(f"{self._segment.path}: round {frame.number} where {found.next_round} was expected")
        elif frame.sequence != found.next_sequence:
            found.suspect_all(f"{self._segment.path}: record {frame.sequence}, expected {found.next_sequence}")
        if good:
            found.again = (frame, body)
            found.mark()
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

    def _records(self, frame: Frame, body: bytes) -> Iterator[Record]:
        """The intact records of a frame. A damaged one quarantines its shard, or every shard when it cannot be told, once
        the records before it are taken."""
        found, at = self._found, 0
        where = f"{self._segment.path}: round {frame.number}"
        for sequence in range(frame.sequence, frame.sequence + frame.records):
            record = read_record(body, at, sequence)
            if record is None:
                found.suspect_all(
                    f"{where}: the header of a record is damaged at byte {frame.offset + FRAME_BYTES + at}"
                )
                return
            at += RECORD_BYTES + len(record.payload)
            if record.intact:
                yield record
            elif record.kind == RecordKind.SUSPECT:
                found.suspect_all(f"{where}: a mark is damaged")
            else:
                reason = f"{where}: the record of entry {record.index} is damaged"
                self._of(record, reason).quarantine(reason)
        if at != len(body):
            found.suspect_all(f"{where}: {len(body) - at} bytes too many")

    def _of(self, record: Record, reason: str) -> Replay:
        """The shard of a record; a shard that has no beginning in the log is quarantined."""
        replay = self._found.shards.get(record.shard)
        if replay is None or replay.log.replica != record.replica:
            replay = self._begin(ShardLog(record.shard, record.replica, Configuration(())))
            replay.quarantine(reason)
        return replay

    def _begin(self, log: ShardLog) -> Replay:
        known = self._found.shards.get(log.shard)
        if known is not None:
            self._found.forget(log.shard, known.log.replica)
        replica, index = self._discard.get(log.shard, (0, 0))
        replay = self._found.shards[log.shard] = Replay(log, index if replica == log.replica else 0)
        return replay

    def _take(self, record: Record) -> None:
        kind, shard = record.kind, record.shard
        where = f"{self._segment.path}: entry {record.index}"
        try:
            if kind == RecordKind.BEGIN:
                self._begin(ShardLog(shard, record.replica, Configuration.decode(record.payload)))
                return
            if kind == RecordKind.DROP:
                self._found.forget(shard, record.replica)
                return
            if kind >= ENTRY_KINDS and kind not in OF_A_REPLICA:
                self._found.suspect_all(f"{where}: a record of unknown kind {kind}")
                return
            replay = self._of(record, f"{where} of a replica that has no beginning in the log")
            if kind < ENTRY_KINDS:
                highest = self._segment.highest
                owner = (shard, record.replica)
                highest[owner] = max(record.index, highest.get(owner, 0))
                replay.entry(record)
            elif kind == RecordKind.HARD_STATE:
                replay.hard_state(record)
            elif kind == RecordKind.BASE:
                replay.base(record)
            else:
                replay.quarantine(record.payload.decode())
        except (struct.error, ValueError) as error:  # the CRC holds and the content does not: a bug or an attack
            self._found.suspect_all(f"{where}: {error}")

    def _checkpoint(self, frame: Frame, body: bytes) -> None:
        """The first one found gives the shards; a later one must agree with what was read. Its mark of an earlier suspicion
        quarantines nobody: whom that concerned, it says line by line."""
        found, first = self._found, len(self._found.segments) == 1
        if first:
            found.next_round, found.next_sequence = frame.number + 1, frame.sequence
        elif frame.sequence != found.next_sequence and not found.suspect:
            found.suspect_all(f"{self._segment.path}: record {frame.sequence}, expected {found.next_sequence}")
        found.next_round = max(found.next_round, frame.number + 1)
        found.next_sequence = max(found.next_sequence, frame.sequence)
        for record in self._records(frame, body):
            try:
                if record.kind == RecordKind.SUSPECT:
                    found.suspect = found.suspect or record.payload.decode()
                elif record.kind == RecordKind.DROP:
                    found.forget(record.shard, record.replica)
                else:
                    self._line(record, first)
            except (struct.error, ValueError) as error:
                found.suspect_all(f"{self._segment.path}: its checkpoint: {error}")

    def _line(self, record: Record, first: bool) -> None:
        """One shard in a checkpoint."""
        line = from_checkpoint(record.shard, record.replica, record.index, record.term, record.payload)
        known = self._found.shards.get(record.shard)
        if known is not None and known.log.replica == line.replica:
            known.adopt(line)
            return
        if not first:
            line.quarantine = line.quarantine or f"{self._segment.path}: a replica that earlier segments do not know"
        line.base_index, line.base_term = line.last_index, line.last_term  # what lay below was released
        self._begin(line)
