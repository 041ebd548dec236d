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
    """Made by `open`. `append` and `sync` belong to one caller, the pump; `begin`, `drop` and `quarantine` are called between
    its rounds and enter the next one. `dropped`: per shard the highest replica id that was here and is no more."""

    def __init__(self, disk: Disk, identity: Identity, limits: Limits, found: Recovered) -> None:
        self.total_bytes = 0
        self.suspect = found.suspect
        self._disk = disk
        self._identity = identity
        self._limits = limits
        self.dropped = found.dropped
        self._shards = {shard: replay.log for shard, replay in found.shards.items()}
        self._born: dict[int, ShardLog | None] = {}  # begun, or dropped, with the next round
        self._gone: dict[int, int] = {}  # joins `dropped` with the next round
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
        discard_at_or_below: Mapping[int, tuple[int, int]] | None = None,
    ) -> tuple[Log, dict[int, RecoveredShard]]:
        """The log in the directory of `disk`, and what it holds per shard. Entries of a (replica, index) at or below
        `discard_at_or_below` are not returned: the base moves up to them. ForeignFile for the log of another cluster, node
        or format; StorageFailed.

        The returned log goes on in a fresh segment, so nothing is ever appended to what may be damaged."""
        identity = Identity(cluster_id, node, boot_id)
        disk.make_directory(DIRECTORY)
        found = Recovery(disk, identity, discard_at_or_below or {}).run()
        failpoint("recovery.read")
        log = cls(disk, identity, limits, found)
        quarantined = [(shard, replay.log.replica) for shard, replay in found.shards.items() if replay.log.quarantine]
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

    def begin(self, shard: int, replica: int, configuration: Configuration, *, fresh: bool) -> str:
        """A new replica with an empty log, also in the place of a quarantined one. Its quarantine: "" when it may vote.

        `fresh`: this id has surely never been here. Otherwise, where damage was found whose shard could not be read, it may
        have had a log that is lost. An id that is not above all that were here before has been here, and is quarantined."""
        name, known = f"shard {shard}", self._known(shard)
        assert known is None or known.replica != replica, f"{name}: replica {replica} has begun already"
        assert known is None or known.quarantine, f"{name}: replica {known.replica} has to be dropped first"
        if known is not None:
            self._leaves(known)
        self._born[shard] = ShardLog(shard, replica, configuration)
        self._pending.append((shard, RecordKind.BEGIN, replica, 0, 0, configuration.encode()))
        reason = "" if fresh else self.suspect
        if replica <= max(self._gone.get(shard, 0), self.dropped.get(shard, 0)):
            reason = f"replica {replica} was here before"
        if reason:
            self.quarantine(shard, reason)
        return reason

    def drop(self, shard: int) -> None:
        """The replica leaves this node for good: the log knows the shard no more, but that its id was here."""
        known = self._known(shard)
        assert known is not None, f"shard {shard}: there is nothing to drop"
        self._leaves(known)
        self._born[shard] = None
        self._pending.append((shard, RecordKind.DROP, known.replica, 0, 0, b""))

    def _leaves(self, known: ShardLog) -> None:
        self._gone[known.shard] = max(known.replica, self._gone.get(known.shard, 0))

    def _known(self, shard: int) -> ShardLog | None:
        return self._born[shard] if shard in self._born else self._shards.get(shard)

    def quarantine(self, shard: int, reason: str) -> None:
        """The replica is not to be trusted, also after a restart. The first reason stays."""
        known = self._known(shard)
        assert known is not None, f"shard {shard}: there is nothing to quarantine"
        if not known.quarantine:
            known.quarantine = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
            self._pending.append((shard, RecordKind.QUARANTINE, known.replica, 0, 0, known.quarantine.encode()))

    # -- rounds --------------------------------------------------------------------------------------------------------

    def append(self, rounds: Sequence[ShardRound]) -> int:
        """Writes one round in one go; the bytes written (0 when there was nothing to write). Durable after `sync` only.
        DiskFull: nothing was written and the same round may be tried again. StorageFailed: the log is dead."""
        self._check()
        assert self._synced, f"round {self._round}: the round before it is not synced"
        staged: dict[int, ShardLog] = {}
        pieces: list[bytes] = [b""]
        sequence = self._sequence
        for record in self._pending:
            pieces += pack_record(sequence, *record)
            sequence += 1
        for addition in rounds:
            known = staged.get(addition.shard) or self._known(addition.shard)
            assert known is not None, (
                f"shard {addition.shard}: a round of replica {addition.replica}, which is not here"
            )
            shard = staged[addition.shard] = known.copy()
            shard.check(addition)
            sequence = _pack_round(pieces, sequence, addition)
            shard.advance(addition)
        if sequence == self._sequence:
            return 0
        length = sum(map(len, pieces))
        frame = Frame(FrameKind.ROUND, self._round, self._size, self._sequence, sequence - self._sequence, length)
        pieces[0] = pack_frame(frame, self._salt)
        self._write(pieces)
        self._settle(staged)
        self._note_highest(rounds)
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

    def _settle(self, staged: Mapping[int, ShardLog]) -> None:
        """The round is written, and so is what waited for it."""
        for number, shard in self._born.items():
            if shard is None:
                self._shards.pop(number, None)
            else:
                self._shards[number] = shard
        self._shards.update(staged)
        self.dropped.update(self._gone)
        self._born.clear()
        self._gone.clear()
        self._pending.clear()

    def _note_highest(self, rounds: Iterable[ShardRound]) -> None:
        highest = self._segments[-1].highest
        for addition in rounds:
            if addition.entries:
                index, owner = addition.entries[-1].index, (addition.shard, addition.replica)
                if index > highest.get(owner, 0):
                    highest[owner] = index

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

    def release(self, durable_applied: Mapping[int, tuple[int, int]]) -> int:
        """Deletes the oldest segments whose entries are all durably applied, by shard (replica, index); how many. A state
        of another replica covers nothing. Nothing is pinned by a replica that is quarantined or was dropped, nor by entries
        that were replaced by a shorter log."""
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

    def _covered(self, segment: Segment, durable_applied: Mapping[int, tuple[int, int]]) -> bool:
        for (shard, replica), highest in segment.highest.items():
            log = self._shards.get(shard)
            if log is None or log.replica != replica or log.quarantine:
                continue
            owner, applied = durable_applied.get(shard, (replica, 0))
            if min(highest, log.last_index) > (applied if owner == replica else 0):
                return False
        return True

    async def _roll(self) -> None:
        """Goes on in a new segment. Where the disk is full the old one grows on, and it is tried again later."""
        head = SegmentHead(self._identity, self._segments[-1].number + 1, self._round, self._sequence)
        try:
            checkpoint = checkpoint_frame(head, self._shards.values(), self.dropped, self.suspect)
            file = await create_segment(self._disk, head, checkpoint)
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
        pieces = checkpoint_frame(head, found.checkpoint, found.checkpoint_dropped, found.checkpoint_suspect)
        highest: dict[tuple[int, int], int] = {}
        if found.again is not None:
            frame, body = found.again
            offset = HEAD_BYTES + sum(map(len, pieces))
            pieces += [pack_frame(frame._replace(offset=offset), head.salt), body]
            highest = dict(found.segments[-1].highest)
        self._use(await create_segment(self._disk, head, pieces), head, highest)

    def _use(self, file: File, head: SegmentHead, highest: dict[tuple[int, int], int]) -> None:
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
        members = base.configuration.encode()
        pieces += pack_record(sequence, shard, RecordKind.BASE, replica, base.index, base.term, members)
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
