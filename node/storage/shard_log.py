"""What the log knows of one shard without its entries, and the laws that every round and every recovery keeps.

Thesis section 3.4 (persistent state) and 3.6 (a log is replaced from the conflict on, never at or below the commit
index); section 5.1 for the base that a snapshot leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, HardState, SnapshotPoint
from node.storage.record import RecordKind, pack_checkpoint, pack_record, read_checkpoint


@dataclass(slots=True)
class ShardRound:
    """What one shard adds to a round: first `base` (a snapshot was installed: the log begins after this point and every
    entry it had is gone), then the entries, then the hard state."""

    shard: int
    replica: int
    entries: list[Entry]
    hard_state: HardState | None
    base: SnapshotPoint | None


@dataclass(slots=True)
class ShardLog:
    shard: int
    replica: int
    configuration: Configuration  # that of its beginning or of the last base; what CONFIG entries say follows it
    term: int = 0
    vote: int = 0
    commit: int = 0
    base_index: int = 0
    base_term: int = 0
    last_index: int = 0
    last_term: int = 0
    quarantine: str = ""

    def copy(self) -> ShardLog:
        """Written out: it is made for every shard of every round."""
        return ShardLog(
            self.shard,
            self.replica,
            self.configuration,
            self.term,
            self.vote,
            self.commit,
            self.base_index,
            self.base_term,
            self.last_index,
            self.last_term,
            self.quarantine,
        )

    def problem_with_entry(self, index: int, term: int) -> str:
        """Why an entry cannot follow; "" when it can. It replaces whatever lies at or above its index."""
        if index > self.last_index + 1:
            return f"entry {index} after {self.last_index}: entries are missing"
        if index <= self.commit:
            return f"entry {index} replaces a committed one (commit index {self.commit})"
        if index == self.last_index + 1 and term < self.last_term:
            return f"entry {index} of term {term} after one of term {self.last_term}"
        return ""

    def problem_with_hard_state(self, term: int, vote: int, commit: int) -> str:
        if term < self.term or commit < self.commit:
            return f"hard state {term}/{commit} goes back from {self.term}/{self.commit}"
        if term == self.term and self.vote not in (0, vote):
            return f"vote of term {term} changes from {self.vote} to {vote}"
        if commit > self.last_index:
            return f"commit index {commit} above the last entry {self.last_index}"
        return ""

    def check(self, addition: ShardRound) -> None:
        """AssertionError when the round would break a law of the log."""
        name = f"shard {self.shard}"
        assert addition.replica == self.replica, f"{name}: round of replica {addition.replica}, here is {self.replica}"
        assert not self.quarantine, f"{name}: a quarantined replica appends nothing ({self.quarantine})"
        after, entries, hard = self.copy(), addition.entries, addition.hard_state
        if addition.base is not None:
            assert addition.base.index >= self.commit, f"{name}: base {addition.base.index} below commit {self.commit}"
            after.rebase(addition.base)
        if entries:
            first = entries[0]
            assert first.index > after.base_index, f"{name}: entry {first.index} at or below base {after.base_index}"
            problem = after.problem_with_entry(first.index, first.term)
            assert not problem, f"{name}: {problem}"
            last = entries[-1]
            assert last.index - first.index + 1 == len(entries), (
                f"{name}: entries {first.index}..{last.index} have gaps"
            )
            after.last_index = last.index
        if hard is not None:
            problem = after.problem_with_hard_state(hard.term, hard.vote, hard.commit)
            assert not problem, f"{name}: {problem}"

    def advance(self, addition: ShardRound) -> None:
        """The round is in the log."""
        if addition.base is not None:
            self.rebase(addition.base)
        if addition.entries:
            self.last_index, self.last_term = addition.entries[-1].index, addition.entries[-1].term
        if (hard := addition.hard_state) is not None:
            self.term, self.vote, self.commit = hard.term, hard.vote, hard.commit

    def rebase(self, point: SnapshotPoint) -> None:
        self.base_index, self.base_term = self.last_index, self.last_term = point.index, point.term
        self.configuration = point.configuration
        self.commit = max(self.commit, point.index)

    def checkpoint(self, sequence: int) -> tuple[bytes, bytes]:
        line = pack_checkpoint(
            self.term, self.vote, self.commit, self.base_index, self.base_term, self.configuration, self.quarantine
        )
        return pack_record(
            sequence, self.shard, RecordKind.CHECKPOINT, self.replica, self.last_index, self.last_term, line
        )


def from_checkpoint(shard: int, replica: int, last_index: int, last_term: int, line: bytes) -> ShardLog:
    """struct.error or ValueError when it is no such line."""
    (term, vote, commit, base_index, base_term), configuration, quarantine = read_checkpoint(line)
    return ShardLog(
        shard,
        replica,
        configuration,
        term,
        vote,
        commit,
        base_index,
        base_term,
        last_index,
        last_term,
        quarantine,
    )
