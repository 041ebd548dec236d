"""Power cuts on the disk that forgets: what was synced survives, what was not is never required.

One life is: open, verify against the model, write rounds, die at some durable step. The cut falls before or after any
append, sync, rename, removal and directory sync, also while recovery runs. The boot id changes with every cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.ports import StorageFailed
from node.storage import memory
from node.storage.log import Log
from node.storage.memory import ForgettingDisk
from tests.storage.storage_world import (
    VOTERS,
    DyingDisk,
    Model,
    PowerCut,
    ShardModel,
    after_round,
    difference,
    drive,
    next_round,
    open_log,
)


class History:
    """Lives of one log on one medium."""

    def __init__(self, seed: int, *, kill: bool = False, sabotage: Callable[[Log], None] | None = None) -> None:
        self.choose = random.Random(seed)
        self.medium = ForgettingDisk()
        self.synced: Model = {}
        self.written: Model = {}  # with the round that may not be synced
        self.released: dict[int, int] = {}
        self.kill = kill
        self.sabotage = sabotage
        self.boot = 0
        self.steps: list[str] = []

    def live(self, steps: int) -> None:
        """One life that ends after so many durable steps."""
        disk = DyingDisk(self.medium.attach(), steps, after=self.choose.random() < 0.5)
        try:
            log, found = drive(open_log(disk, f"boot-{self.boot}"))
            self.verify(found)
            if self.sabotage:
                self.sabotage(log)
            while True:
                self.round(log)
        except PowerCut:
            self.steps += disk.taken[-1:]
            if self.kill:
                self.medium.incarnation += 1  # SIGKILL: the page cache stays
            else:
                self.boot += 1
                self.medium.crash(self.choose)

    def verify(self, found: dict) -> None:  # type: ignore[type-arg]
        problems = [difference(each, found, self.released) for each in (self.synced, self.written)]
        assert "" in problems, f"neither the synced state ({problems[0]}) nor the written one ({problems[1]})"
        self.synced = self.written = self.synced if problems[0] == "" else self.written

    def round(self, log: Log) -> None:
        if not self.synced:
            self.written = {shard: ShardModel(11) for shard in (1, 2, 3)}
            for shard in self.written:
                log.begin(shard, 11, VOTERS, fresh=False)
            log.append([])
        else:
            rounds = next_round(self.synced, self.choose)
            self.written = after_round(self.synced, rounds)
            log.append(rounds)
        drive(log.sync())
        self.synced = self.written
        if self.choose.random() < 0.15:
            self.released = {shard: max(self.released.get(shard, 0), s.hard.commit) for shard, s in self.synced.items()}
            log.release({shard: (11, index) for shard, index in self.released.items()})


@settings(max_examples=80)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), min_size=2, max_size=8))
def test_everything_synced_survives_power_cuts(seed: int, lives: list[int]) -> None:
    history = History(seed)
    for steps in lives:
        history.live(steps)
    history.live(10)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), min_size=2, max_size=8))
def test_everything_written_survives_kills(seed: int, lives: list[int]) -> None:
    history = History(seed, kill=True)
    for steps in lives:
        history.live(steps)
    history.live(10)


def test_every_kind_of_step_is_cut() -> None:
    """The lives above do fall on each durable step; every single step of one long life is cut in turn."""
    cut: set[str] = set()
    for steps in range(1, 100):
        history = History(steps)
        history.live(steps)
        history.live(8)
        history.live(5)
        cut.update(history.steps)
    assert cut >= {"create", "append", "sync", "rename", "remove", "sync directory"}


def never_syncs(log: Log) -> None:
    async def claims_to() -> None:
        return None

    log._file.sync = claims_to  # type: ignore[method-assign]


def test_a_writer_that_acknowledges_before_the_sync_is_caught() -> None:
    with pytest.raises(AssertionError, match="neither the synced state"):
        for seed in range(40):
            history = History(seed, sabotage=never_syncs)
            history.live(30)
            history.live(30)


def test_a_directory_that_is_not_synced_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.MemoryDisk, "sync_directory", lambda self, path: None)
    with pytest.raises(AssertionError, match="neither the synced state"):
        for seed in range(40):
            history = History(seed)
            history.live(40)
            history.live(40)


def test_a_sync_that_failed_is_not_believed_after_a_restart() -> None:
    """The round whose sync failed is in the page cache and counts as clean. A restart of the process finds it there, and
    must make it durable anew before it relies on it: a later power cut does not lose it."""
    medium = ForgettingDisk()
    log, _ = drive(open_log(medium.attach()))
    log.begin(1, 11, VOTERS, fresh=False)
    log.append([])
    drive(log.sync())
    model = {1: ShardModel(11)}
    rounds = next_round(model, random.Random(5))
    log.append(rounds)
    medium.fail_sync_in = 1
    with pytest.raises(StorageFailed):
        drive(log.sync())
    with pytest.raises(StorageFailed):
        drive(log.sync())
    with pytest.raises(StorageFailed):
        log.append([])
    _, found = drive(open_log(medium.attach()))
    model = after_round(model, rounds)
    assert difference(model, found) == ""
    medium.crash(random.Random(1), keep=False)
    _, found = drive(open_log(medium.attach(), "boot-2"))
    assert difference(model, found) == ""
