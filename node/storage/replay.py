"""What recovery gathers while it reads the log: each shard with its entries, and what holds for the whole log."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, SnapshotPoint
from node.storage.record import Frame, Record, read_hard_state
from node.storage.segment import Segment
from node.storage.shard_log import ShardLog


@dataclass(slots=True)
class Replay:
    """One shard while the log is read: its bookkeeping and the entries after `log.base_index`."""

    log: ShardLog
    discard: int  # entries at or below it need not be kept
    entries: list[Entry] = field(default_factory=list)

    def quarantine(self, reason: str) -> None:
        self.log.quarantine = self.log.quarantine or reason

    def entry(self, record: Record) -> None:
        log, index = self.log, record.index
        if log.quarantine:
            return
        problem = log.problem_with_entry(index, record.term)
        if problem:
            self.quarantine(problem)
            return
        log.last_index, log.last_term = index, record.term
        if index <= log.base_index:  # what lies below is discarded already, and this replaces what lay above
            log.base_index, log.base_term = index, record.term
            self.entries.clear()
            return
        del self.entries[index - log.base_index - 1 :]
        self.entries.append(Entry(index, record.term, record.kind, record.payload))

    def hard_state(self, record: Record) -> None:
        vote, commit = read_hard_state(record.payload)
        log = self.log
        problem = log.problem_with_hard_state(record.term, vote, commit)
        if problem:
            self.quarantine(problem)
        if record.term >= log.term:  # a vote that was given stays given, whatever else is wrong
            log.term, log.vote = record.term, vote
            log.commit = max(log.commit, commit)

    def base(self, record: Record) -> None:
        self.log.rebase(SnapshotPoint(record.index, record.term, Configuration.decode(record.payload)))
        self.entries.clear()

    def trim(self) -> None:
        """Drops what need not be kept."""
        log, entries = self.log, self.entries
        count = min(self.discard, log.last_index) - log.base_index
        if count > 0 and entries:
            log.base_index, log.base_term = entries[count - 1].index, entries[count - 1].term
            del entries[:count]

    def adopt(self, line: ShardLog) -> None:
        """Compares with the line of a later checkpoint, which was written when all that was read here was synced."""
        log = self.log
        log.quarantine = log.quarantine or line.quarantine
        if log.quarantine:
            if line.term >= log.term:
                log.term, log.vote = line.term, line.vote
            return
        for name in ("term", "vote", "commit", "last_index", "last_term"):
            if getattr(log, name) != getattr(line, name):
                self.quarantine(f"{name} is {getattr(log, name)} in the log and {getattr(line, name)} in a checkpoint")


@dataclass(slots=True)
class Recovered:
    """What the log holds. `suspect`: damage whose shard could not be read, now or at an earlier start. `dropped`: per
    shard the highest replica id that was here and is no more."""

    shards: dict[int, Replay] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    suspect: str = ""
    segments: list[Segment] = field(default_factory=list)
    first_segment: int = 1  # of those to come
    checkpoint: list[ShardLog] = field(default_factory=list)  # of all shards before `again`
    checkpoint_dropped: dict[int, int] = field(default_factory=dict)
    checkpoint_suspect: str = ""
    again: tuple[Frame, bytes] | None = None  # the last round, complete but perhaps never synced
    next_round: int = 1
    next_sequence: int = 1
    cut_bytes: int = 0  # of a torn tail

    def suspect_all(self, reason: str) -> None:
        """Damage that may be anybody's: every replica that is known by now is quarantined. One that begins later has
        nothing in what is damaged."""
        self.suspect = self.suspect or reason
        for replay in self.shards.values():
            replay.quarantine(reason)

    def forget(self, shard: int, replica: int) -> None:
        """The replica was dropped, or another one began in its place."""
        known = self.shards.get(shard)
        if known is not None and known.log.replica <= replica:
            del self.shards[shard]
        self.dropped[shard] = max(replica, self.dropped.get(shard, 0))

    def mark(self) -> None:
        """What the next segment's checkpoint says: all that is known by now."""
        self.checkpoint = [replay.log.copy() for replay in self.shards.values()]
        self.checkpoint_dropped = dict(self.dropped)
        self.checkpoint_suspect = self.suspect
