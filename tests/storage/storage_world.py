"""What the storage tests share: a log under a workload, a model that says what must survive, and disks that die.

Rounds are made from a seed alone, so that a test can recompute what a killed process wrote.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cluster.limits import Limits
from cluster.ports import Disk, File
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, HardState, SnapshotPoint
from node.storage.identity import Identity
from node.storage.log import Log, RecoveredShard, ShardRound
from node.storage.record import FRAME_BYTES, read_frame, read_record
from node.storage.segment import HEAD_BYTES, read_head

T = TypeVar("T")
CLUSTER = bytes(range(16))
VOTERS = Configuration((11, 12, 13), (14,), version=3)
SMALL = Limits(segment_bytes=2048)


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits: those of the in-memory twins."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("the coroutine waited")


async def open_log(
    disk: Disk, boot: str = "boot-1", limits: Limits = SMALL, discard: dict[int, tuple[int, int]] | None = None
) -> tuple[Log, dict[int, RecoveredShard]]:
    return await Log.open(disk, cluster_id=CLUSTER, node="n1", boot_id=boot, limits=limits, discard_at_or_below=discard)


@dataclass
class ShardModel:
    """What one shard's log must hold. `terms` of every index that was ever synced, for bases."""

    replica: int
    hard: HardState = field(default_factory=HardState)
    base: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)
    terms: dict[int, int] = field(default_factory=lambda: {0: 0})

    @property
    def last(self) -> int:
        return max(self.entries, default=self.base)

    def copy(self) -> ShardModel:
        return ShardModel(self.replica, replace(self.hard), self.base, dict(self.entries), dict(self.terms))

    def take(self, addition: ShardRound) -> None:
        if addition.base is not None:
            self.base = addition.base.index
            self.entries.clear()
            self.terms = {self.base: addition.base.term}
            self.hard.commit = max(self.hard.commit, self.base)
        for entry in addition.entries:
            for index in [index for index in self.entries if index >= entry.index]:
                del self.entries[index], self.terms[index]
            self.entries[entry.index] = entry
            self.terms[entry.index] = entry.term
        if addition.hard_state is not None:
            self.hard = replace(addition.hard_state)

    def matches(self, found: RecoveredShard, released: int = 0) -> str:
        """ "" when `found` is this state, but for entries at or below `released`; else what differs."""
        if found.quarantine:
            return f"quarantined: {found.quarantine}"
        if found.hard_state != self.hard:
            return f"hard state {found.hard_state}, expected {self.hard}"
        if found.base_index < self.base or found.base_index > max(self.base, released):
            return f"base {found.base_index}, expected {self.base} or up to {released}"
        if self.terms.get(found.base_index) != found.base_term:
            return f"base {found.base_index} of term {found.base_term}, expected {self.terms.get(found.base_index)}"
        expected = [self.entries[index] for index in sorted(self.entries) if index > found.base_index]
        if found.entries != expected:
            return f"entries {found.entries}, expected {expected}"
        return ""


Model = dict[int, ShardModel]


def difference(model: Model, found: dict[int, RecoveredShard], released: dict[int, int] | None = None) -> str:
    """ "" when recovery found exactly the model."""
    if set(model) != set(found):
        return f"shards {sorted(found)}, expected {sorted(model)}"
    for shard, expected in model.items():
        problem = expected.matches(found[shard], (released or {}).get(shard, 0))
        if problem:
            return f"shard {shard}: {problem}"
    return ""


def next_round(model: Model, choose: random.Random, shards: int = 3) -> list[ShardRound]:
    """A lawful round on top of `model`: appends, conflicts that replace entries, votes, commits, now and then a base."""
    rounds = []
    for shard in choose.sample(sorted(model), choose.randint(1, min(shards, len(model)))):
        state = model[shard]
        term, vote, commit = state.hard.term, state.hard.vote, state.hard.commit
        if choose.random() < 0.2:
            term, vote = term + 1, choose.choice((0, 11, 12, 13))
        elif vote == 0 and choose.random() < 0.3:
            vote = choose.choice((11, 12, 13))
        base = None
        if choose.random() < 0.05:
            base = SnapshotPoint(max(state.last, commit) + choose.randint(1, 5), max(term, 1), VOTERS)
        last = base.index if base else state.last
        first = last + 1
        if base is None and last > commit and term > state.terms.get(last, 0) and choose.random() < 0.5:
            first = choose.randint(commit + 1, last)
        entries = [
            Entry(first + n, max(term, 1), 0, choose.randbytes(choose.randint(0, 90)))
            for n in range(choose.randint(0, 4))
        ]
        last = entries[-1].index if entries else last
        commit = max(commit, base.index if base else 0)
        if choose.random() < 0.5:
            commit = choose.randint(commit, last)
        rounds.append(ShardRound(shard, state.replica, entries, HardState(max(term, 1), vote, commit), base))
    return rounds


def begun(log: Log, shards: int = 3) -> Model:
    """Begins the shards 1..n in a fresh log, and their model."""
    model: Model = {}
    for shard in range(1, shards + 1):
        assert log.begin(shard, 11, VOTERS, fresh=False) == ""
        model[shard] = ShardModel(11)
    return model


def after_round(model: Model, rounds: list[ShardRound]) -> Model:
    changed = dict(model)
    for addition in rounds:
        changed[addition.shard] = changed[addition.shard].copy()
        changed[addition.shard].take(addition)
    return changed


@dataclass(frozen=True)
class Place:
    """A record of the log, or with `shard` 0 the header of a frame. `kind` is the frame's, `record` the record's."""

    path: str
    kind: int
    number: int
    shard: int
    offset: int
    length: int
    record: int = -1


def places_of(disk: Disk, path: str) -> list[Place]:
    """Where everything lies in a whole segment."""
    file = disk.open(path)
    salt = read_head(file, int(path[4:20], 16), Identity(CLUSTER, "n1")).salt
    offset, places = HEAD_BYTES, []
    while (frame := read_frame(file.read(offset, FRAME_BYTES), salt, offset)) is not None:
        places.append(Place(path, frame.kind, frame.number, 0, offset, FRAME_BYTES))
        body, at = file.read(offset + FRAME_BYTES, frame.length), offset + FRAME_BYTES
        for sequence in range(frame.sequence, frame.sequence + frame.records):
            record = read_record(body, at - offset - FRAME_BYTES, sequence)
            assert record is not None and record.intact
            places.append(Place(path, frame.kind, frame.number, record.shard, at, record.bytes, record.kind))
            at += record.bytes
        offset = frame.end
    assert offset == file.size()
    file.close()
    return places


class PowerCut(BaseException):
    """Not an Exception: nothing in the product may catch it."""


class DyingDisk:
    """A disk on which the n-th durable step from now is the last: power is cut just before it or just after it."""

    def __init__(self, disk: Disk, steps: int, *, after: bool) -> None:
        self._disk = disk
        self.left = steps
        self._after = after
        self.taken: list[str] = []

    def step(self, name: str, act: Callable[[], Any]) -> Any:
        self.left -= 1
        self.taken.append(name)
        if self.left == 0 and not self._after:
            raise PowerCut(name)
        result = act()
        if self.left == 0:
            raise PowerCut(name)
        return result

    def create(self, path: str) -> File:
        return DyingFile(self, self.step("create", lambda: self._disk.create(path)))

    def open(self, path: str, *, writable: bool = False) -> File:
        return DyingFile(self, self._disk.open(path, writable=writable))

    def rename(self, old: str, new: str) -> None:
        self.step("rename", lambda: self._disk.rename(old, new))

    def remove(self, path: str) -> None:
        self.step("remove", lambda: self._disk.remove(path))

    def sync_directory(self, path: str) -> None:
        self.step("sync directory", lambda: self._disk.sync_directory(path))

    def exists(self, path: str) -> bool:
        return self._disk.exists(path)

    def list(self, path: str) -> list[str]:
        return self._disk.list(path)

    def make_directory(self, path: str) -> None:
        self._disk.make_directory(path)


class DyingFile:
    def __init__(self, disk: DyingDisk, file: File) -> None:
        self._disk = disk
        self._file = file

    def append(self, pieces: list[bytes]) -> int:
        return int(self._disk.step("append", lambda: self._file.append(pieces)))

    async def sync(self) -> None:
        self._disk.step("sync", lambda: drive(self._file.sync()))

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", lambda: self._file.truncate(size))

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()
