"""The node's only write-ahead log: one for all shards, in rounds that are written in one go and synced once.

Laws, asserted always: round n+1 is written only after round n was synced; a failed sync is never retried; what a shard
adds breaks none of its own laws (`shard_log`). Damage is judged at `open` (`recovery`); the README argues the design.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.limits import Limits
from cluster.ports import Disk, DiskFull, File, StorageFailed
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, HardState
from node.storage.evidence import keep_evidence
from node.storage.failpoints import failpoint
from node.storage.identity import Identity
from node.storage.record import (
    FRAME_BYTES,
    Frame,
    FrameKind,
    RecordKind,
    pack_entries,
    pack_frame,
    pack_hard_state,
    pack_record,
    pack_voters,
)
from node.storage.recovery import Recovery
from node.storage.replay import Recovered, Replay
from node.storage.segment import DIRECTORY, HEAD_BYTES, Segment, SegmentHead, checkpoint_frame, create_segment
from node.storage.shard_log import ShardLog, ShardRound

__all__ = ["Log", "RecoveredShard", "ShardRound"]

REASON_BYTES_MAX = 500


@dataclass(slots=True)
class RecoveredShard:
    """One shard as the log knows it. The entries follow `base_index` without a gap. The caller compares `base_index` with
    its state: a state below it has lost something. `quarantine` is "" when good, else the reason; then there are no entries,
    and term and vote may be too old."""

    shard: int
    replica: int
    hard_state: HardState
    base_index: int
    base_term: int
    configuration: Configuration
    entries: list[Entry]
    quarantine: str


class Log:
    """Made by `open`. `append` and `sync` belong to one caller, the pump; `begin` and `quarantine` enter the next round."""

    def __init__(self, disk: Disk, identity: Identity, limits: Limits, found: Recovered) -> None:
        self.total_bytes = 0
        self.suspect = found.suspect
        self._disk = disk
        self._identity = identity
        self._limits = limits
        self._shards = {shard: replay.log for shard, replay in found.shards.items()}
        self._born: dict[int, ShardLog] = {}
        self._pending: list[tuple[int, int, int, int, int, bytes]] = []
        self._segments = found.segments
        self._sizes = {segment.number: _size_of(disk, segment.path) for segment in found.segments}
        self._round = found.next_round
        self._sequence = found.next_sequence
        self._file: File
        self._salt = 0
        self._size = 0
        self._roll_at = limits.segment_bytes
        self._synced = True
        self._name_removed = False  # and the directory not synced since
        self._failure = ""

    @classmethod
    async def open(
        cls,
        disk: Disk,
        *,
        cluster_id: bytes,
        node: str,
        boot_id: str,
        limits: Limits,
        discard_at_or_below: Mapping[int, int] | None = None,
    ) -> tuple[Log, dict[int, RecoveredShard]]:
        """The log in the directory of `disk`, and what it holds per shard. Entries at or below `discard_at_or_below` are
        not returned: the base moves up to them. ForeignFile for another cluster's, node's or newer log; StorageFailed.

        The returned log goes on in a fresh segment, so nothing is ever appended to what may be damaged."""
        identity = Identity(cluster_id, node, boot_id)
        disk.make_directory(DIRECTORY)
        found = Recovery(disk, identity, discard_at_or_below or {}).run()
        failpoint("recovery.read")
        log = cls(disk, identity, limits, found)
        quarantined = [shard for shard, replay in found.shards.items() if replay.log.quarantine]
        await keep_evidence(disk, identity, quarantined, found.segments)
        await log._open_segment(found)
        failpoint("recovery.opened")
        return log, {shard: _recovered(replay) for shard, replay in sorted(found.shards.items())}

    @property
    def last_sync_s(self) -> float:
        """Seconds the disk's last sync took; 0.0 for a disk that does not measure."""
        return float(getattr(self._disk, "last_sync_s", 0.0))

    @property
    def disk_bytes(self) -> int:
        """Bytes of all segments that lie on disk."""
        return self._size + sum(self._sizes.values())

    # -- what enters the next round ------------------------------------------------------------------------------------

    def begin(self, shard: int, replica: int, configuration: Configuration) -> str:
        """A new replica at birth, with an empty log. Its quarantine: "" unless damage was found whose shard could not be
        read, since then this shard may have had a log that is lost."""
        known = self._born.get(shard) or self._shards.get(shard)
        assert known is None or known.replica != replica, f"shard {shard}: replica {replica} has begun already"
        self._born[shard] = ShardLog(shard, replica, configuration)
        self._pending.append((shard, RecordKind.BEGIN, replica, 0, 0, pack_voters(configuration)))
        if self.suspect:
            self.quarantine(shard, self.suspect)
        return self.suspect

    def quarantine(self, shard: int, reason: str) -> None:
        """The replica is not to be trusted, also after a restart. The first reason stays."""
        known = self._born.get(shard) or self._shards[shard]
        if not known.quarantine:
            known.quarantine = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
            self._pending.append((shard, RecordKind.QUARANTINE, known.replica, 0, 0, known.quarantine.encode()))

    # -- rounds --------------------------------------------------------------------------------------------------------

    def append(self, rounds: Sequence[ShardRound]) -> int:
        """Writes one round in one go; the bytes written (0 when there was nothing to write). Durable after `sync` only.
        DiskFull: nothing was written and the same round may be tried again. StorageFailed: the log is dead."""
        self._check()
        assert self._synced, f"round {self._round}: the round before it is not synced"
        staged = dict(self._born)
        pieces: list[bytes] = [b""]
        sequence = self._sequence
        for record in self._pending:
            pieces += pack_record(sequence, *record)
            sequence += 1
        for addition in rounds:
            shard = staged.get(addition.shard) or self._shards[addition.shard]
            shard = staged[addition.shard] = shard.copy()
            shard.check(addition)
            sequence = _pack_round(pieces, sequence, addition)
            shard.advance(addition)
        if sequence == self._sequence:
            return 0
        length = sum(map(len, pieces))
        frame = Frame(FrameKind.ROUND, self._round, self._size, self._sequence, sequence - self._sequence, length)
        pieces[0] = pack_frame(frame, self._salt)
        self._write(pieces)
        self._shards.update(staged)
        self._note_highest(rounds)
        self._pending.clear()
        self._born.clear()
        self._round += 1
        self._sequence = sequence
        self._synced = False
        self.total_bytes += FRAME_BYTES + length
        return FRAME_BYTES + length

    def _write(self, pieces: list[bytes]) -> None:
        try:
            self._size = self._file.append(pieces)
        except DiskFull:
            raise
        except StorageFailed as error:
            self._failure = str(error)
            raise

    def _note_highest(self, rounds: Iterable[ShardRound]) -> None:
        highest = self._segments[-1].highest
        for addition in rounds:
            if addition.entries:
                index = addition.entries[-1].index
                if index > highest.get(addition.shard, 0):
                    highest[addition.shard] = index

    async def sync(self) -> None:
        """The last round is durable when it returns. StorageFailed, from then on for ever."""
        self._check()
        if self._synced:
            return
        try:
            await self._file.sync()
            self._synced = True
            if self._size >= self._roll_at:
                await self._roll()
        except StorageFailed as error:
            self._failure = str(error)
            raise

    # -- segments ------------------------------------------------------------------------------------------------------

    def release(self, durable_applied: Mapping[int, int]) -> int:
        """Deletes the oldest segments whose entries are all at or below their shards' durable-applied index; how many. A
        quarantined replica pins nothing, and neither do entries that were replaced by a shorter log."""
        self._check()
        released = 0
        while len(self._segments) > 1 and self._covered(self._segments[0], durable_applied):
            failpoint("release.before")
            if self._name_removed:  # names may come back in any order, and a gap would be taken for damage
                self._disk.sync_directory(DIRECTORY)
            segment = self._segments.pop(0)
            self._disk.remove(segment.path)
            self._name_removed = True
            del self._sizes[segment.number]
            released += 1
            failpoint("release.removed")
        return released

    def _covered(self, segment: Segment, durable_applied: Mapping[int, int]) -> bool:
        for shard, highest in segment.highest.items():
            log = self._shards.get(shard)
            needed = log is not None and not log.quarantine
            if needed and min(highest, log.last_index) > durable_applied.get(shard, 0):  # type: ignore[union-attr]
                return False
        return True

    async def _roll(self) -> None:
        """Goes on in a new segment. Where the disk is full the old one grows on, and it is tried again later."""
        head = SegmentHead(self._identity, self._segments[-1].number + 1, self._round, self._sequence)
        try:
            file = await create_segment(self._disk, head, checkpoint_frame(head, self._shards.values(), self.suspect))
        except DiskFull:
            self._roll_at = self._size + self._limits.segment_bytes // 8
            return
        self._file.close()
        self._sizes[self._segments[-1].number] = self._size
        self._use(file, head, {})

    async def _open_segment(self, found: Recovered) -> None:
        """The first segment of this incarnation. It repeats the last round, which may have reached the page cache only:
        if its sync failed, the old file's pages count as clean, and syncing that file again would prove nothing."""
        first_round, first_sequence = found.next_round, found.next_sequence
        if found.again is not None:
            first_round, first_sequence = found.again[0].number, found.again[0].sequence
        head = SegmentHead(self._identity, found.first_segment, first_round, first_sequence)
        pieces = checkpoint_frame(head, found.checkpoint, found.checkpoint_suspect)
        highest: dict[int, int] = {}
        if found.again is not None:
            frame, body = found.again
            offset = HEAD_BYTES + sum(map(len, pieces))
            pieces += [pack_frame(frame._replace(offset=offset), head.salt), body]
            highest = dict(found.segments[-1].highest)
        self._use(await create_segment(self._disk, head, pieces), head, highest)

    def _use(self, file: File, head: SegmentHead, highest: dict[int, int]) -> None:
        self._file, self._size, self._salt = file, file.size(), head.salt
        self._segments.append(Segment(head.number, highest))
        self._roll_at = self._size + self._limits.segment_bytes
        self._name_removed = False

    async def close(self) -> None:
        """Writes what still waits for a round, and closes the files."""
        if not self._failure:
            if self._synced and self._pending:
                self.append([])
            await self.sync()
        self._file.close()
        self._failure = self._failure or "the log is closed"

    def _check(self) -> None:
        if self._failure:
            raise StorageFailed(self._failure)


def _pack_round(pieces: list[bytes], sequence: int, addition: ShardRound) -> int:
    """Adds the records of one shard; the sequence of the next record."""
    shard, replica = addition.shard, addition.replica
    if (base := addition.base) is not None:
        voters = pack_voters(base.configuration)
        pieces += pack_record(sequence, shard, RecordKind.BASE, replica, base.index, base.term, voters)
        sequence += 1
    if addition.entries:
        pack_entries(pieces, sequence, shard, replica, addition.entries)
        sequence += len(addition.entries)
    if (hard := addition.hard_state) is not None:
        state = pack_hard_state(hard.vote, hard.commit)
        pieces += pack_record(sequence, shard, RecordKind.HARD_STATE, replica, 0, hard.term, state)
        sequence += 1
    return sequence


def _recovered(replay: Replay) -> RecoveredShard:
    log = replay.log
    return RecoveredShard(
        log.shard,
        log.replica,
        HardState(log.term, log.vote, log.commit),
        log.base_index,
        log.base_term,
        log.configuration,
        [] if log.quarantine else replay.entries,
        log.quarantine,
    )


def _size_of(disk: Disk, path: str) -> int:
    file = disk.open(path)
    try:
        return file.size()
    finally:
        file.close()
