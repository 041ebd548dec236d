"""Replicas come to the log and leave it: what a dropped one leaves, who may begin in whose place, and whom a suspicion bars."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest

from cluster.limits import Limits
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, HardState, SnapshotPoint
from node.storage.log import Log, RecoveredShard, ShardRound
from node.storage.memory import ForgettingDisk, MemoryDisk
from node.storage.record import FRAME_BYTES
from tests.storage.storage_world import VOTERS, DyingDisk, PowerCut, drive, open_log

OTHERS = Configuration((12, 13, 15), (16,), (11, 12, 13), 9)
LARGE = Limits()


def opened(disk: MemoryDisk, boot: str = "boot-1", limits: Limits = LARGE) -> tuple[Log, dict[int, RecoveredShard]]:
    return drive(open_log(disk, boot, limits))


def append(log: Log, *rounds: ShardRound) -> None:
    log.append(rounds)
    drive(log.sync())


def some(replica: int, first: int, count: int = 3, shard: int = 1, size: int = 40) -> ShardRound:
    entries = [Entry(first + n, 1, 0, bytes([replica]) * size) for n in range(count)]
    return ShardRound(shard, replica, entries, HardState(1, 0, first + count - 1), None)


def with_one(limits: Limits = LARGE) -> tuple[MemoryDisk, Log]:
    disk = MemoryDisk()
    log, _ = opened(disk, limits=limits)
    assert log.begin(1, 11, VOTERS, fresh=True) == ""
    append(log, some(11, 1))
    return disk, log


def test_the_log_forgets_a_dropped_replica_and_another_begins_anew() -> None:
    disk, log = with_one()
    log.drop(1)
    append(log)
    assert log.dropped == {1: 11}
    with pytest.raises(AssertionError, match="not here"):
        log.append([some(11, 4)])
    for _ in range(2):
        log, found = opened(disk)
        assert found == {} and log.dropped == {1: 11}
    assert log.begin(1, 15, OTHERS, fresh=True) == ""
    append(log, some(15, 1, 2))
    for _ in range(2):
        log, found = opened(disk)
        assert (found[1].replica, found[1].configuration, found[1].quarantine) == (15, OTHERS, "")
        assert [each.payload[:1] for each in found[1].entries] == [b"\x0f"] * 2
        assert found[1].hard_state == HardState(1, 0, 2) and log.dropped == {1: 11}


def test_one_leaves_and_another_comes_in_one_round() -> None:
    disk, log = with_one()
    log.drop(1)
    assert log.begin(1, 12, VOTERS, fresh=False) == ""
    append(log, some(12, 1, 1))
    _, found = opened(disk)
    assert found[1].replica == 12 and len(found[1].entries) == 1


def test_what_is_not_written_did_not_happen() -> None:
    disk, log = with_one()
    log.drop(1)
    _, found = opened(deepcopy(disk.medium).attach())
    assert found[1].replica == 11 and len(found[1].entries) == 3 and not found[1].quarantine
    disk.medium.capacity = 0
    with pytest.raises(Exception, match="no space"):
        log.append([])
    disk.medium.capacity = None
    append(log)
    assert opened(disk)[1] == {}


def test_a_dropped_replica_pins_no_segment() -> None:
    disk, log = with_one(Limits(segment_bytes=2048))
    log.begin(2, 21, VOTERS, fresh=False)
    for first in range(4, 40, 3):
        append(log, some(11, first, size=200))
    append(log, some(21, 1, shard=2))
    segments = len(disk.list("log"))
    assert segments > 3 and log.release({2: (21, 3)}) == 0
    log.drop(1)
    append(log)
    assert log.release({2: (21, 3)}) == segments - 1
    _, found = opened(disk)
    assert set(found) == {2} and not found[2].quarantine


def test_the_state_of_a_replica_that_was_here_before_releases_nothing_of_the_next_one() -> None:
    """The old one had applied far more than the new one has; its state may still lie in the engine when a flush ends."""
    disk, log = with_one(Limits(segment_bytes=2048))
    log.drop(1)
    log.begin(1, 12, VOTERS, fresh=False)
    for first in range(1, 60, 3):
        append(log, some(12, first, size=200))
    segments = len(disk.list("log"))
    assert log.release({1: (11, 1000)}) == 0
    found = drive(open_log(disk, discard={1: (11, 50)}))[1][1]
    assert found.base_index == 0 and len(found.entries) == 60
    log, found_all = drive(open_log(disk, discard={1: (12, 50)}))
    assert found_all[1].base_index == 50
    assert log.release({1: (12, 60)}) > segments - 2


def test_entries_of_an_earlier_replica_pin_nothing_for_the_next_one() -> None:
    disk, log = with_one(Limits(segment_bytes=2048))
    for first in range(4, 40, 3):
        append(log, some(11, first, size=200))
    log.drop(1)
    log.begin(1, 12, VOTERS, fresh=False)
    append(log, some(12, 1))
    segments = len(disk.list("log"))
    assert log.release({}) == segments - 1, "all but the one the new replica is in"
    assert log.release({}) == 0 and len(opened(disk)[1][1].entries) == 3


def test_the_same_id_never_begins_twice() -> None:
    disk, log = with_one()
    for _ in range(2):
        with pytest.raises(AssertionError, match="has begun"):
            log.begin(1, 11, VOTERS, fresh=True)
        with pytest.raises(AssertionError, match="dropped first"):
            log.begin(1, 12, VOTERS, fresh=True)
        log, _ = opened(disk)
    log.drop(1)
    assert "was here before" in log.begin(1, 11, VOTERS, fresh=True), "in the very same round"
    append(log)
    log, found = opened(disk)
    assert "was here before" in found[1].quarantine
    assert log.begin(1, 14, VOTERS, fresh=True) == ""
    log.drop(1)
    append(log)
    for shard in (2, 3):
        log.begin(shard, 11, VOTERS, fresh=True)
        append(log)
    log, found = opened(disk)
    assert set(found) == {2, 3} and log.dropped == {1: 14}
    assert log.release({}) > 0 and len(disk.list("log")) == 1, "only a checkpoint remembers it now"
    log, found = opened(disk)
    assert set(found) == {2, 3} and log.dropped == {1: 14}
    assert "was here before" in log.begin(1, 12, VOTERS, fresh=True), "ids only grow: an old map asks for this"


def test_a_quarantined_replica_gives_way_to_another_id() -> None:
    disk, log = with_one()
    log.quarantine(1, "its state is damaged")
    append(log)
    log, found = opened(disk)
    assert found[1].quarantine and disk.list("damaged")
    assert log.begin(1, 15, VOTERS, fresh=True) == ""
    append(log, some(15, 1))
    for _ in range(2):
        log, found = opened(disk)
        assert (found[1].replica, found[1].quarantine, log.dropped) == (15, "", {1: 11})
    assert disk.list("damaged") == [], "nobody needs the copies any more"


def test_a_drop_is_whole_or_not_at_all_after_any_power_cut() -> None:
    seen = set()
    for steps in range(1, 8):
        for seed in range(10):
            medium = ForgettingDisk()
            log, _ = opened(medium.attach())
            log.begin(1, 11, VOTERS, fresh=True)
            append(log, some(11, 1))
            dying = DyingDisk(medium.attach(), steps, after=bool(seed % 2))
            ended = False
            try:
                log, _ = drive(open_log(dying, "boot-1", LARGE))
                log.drop(1)
                log.begin(1, 12, VOTERS, fresh=True)
                append(log, some(12, 1, 1))
                ended = True
            except PowerCut:
                pass
            medium.crash(random.Random(seed))
            _, found = opened(medium.attach(), "boot-2")
            assert not found[1].quarantine
            assert (found[1].replica, len(found[1].entries)) in ([(12, 1)] if ended else [(11, 3), (12, 1)])
            seen.add(found[1].replica)
    assert seen == {11, 12}


# -- a suspicion of the whole log --------------------------------------------------------------------------------------


def suspected() -> tuple[ForgettingDisk, Log, str]:
    """Two replicas, then a damaged header in the first of two segments, found at a restart."""
    disk, log = with_one(Limits(segment_bytes=2048))
    log.begin(2, 21, VOTERS, fresh=False)
    append(log, some(11, 4))
    medium, first = disk.medium, f"log/{min(disk.list('log'))}"
    place = disk.open(first).size() + FRAME_BYTES + 3
    append(log, some(21, 1, 20, shard=2, size=200))
    append(log, some(11, 7))
    medium.flip(first, 8 * place)
    log, found = opened(medium.attach())
    assert log.suspect and all(each.quarantine == log.suspect for each in found.values()) and set(found) == {1, 2}
    return medium, log, log.suspect


def test_a_suspicion_bars_nobody_who_is_surely_new() -> None:
    medium, log, suspect = suspected()
    assert log.begin(3, 31, VOTERS, fresh=True) == ""
    assert log.begin(4, 41, VOTERS, fresh=False) == suspect, "the map lists it and the log does not know it"
    assert log.begin(1, 15, VOTERS, fresh=True) == "", "in the place of one that is suspect"
    append(log, some(31, 1, shard=3), some(15, 1))
    log, _ = opened(medium.attach(), limits=Limits(segment_bytes=2048))
    while len(medium.attach().list("log")) < 6:
        append(log, some(31, log._shards[3].last_index + 1, 9, shard=3, size=200))
    last = log._shards[3].last_index
    for start in range(3):
        log, found = opened(medium.attach(), f"boot-{start}")
        assert {shard: each.replica for shard, each in found.items() if not each.quarantine} == {1: 15, 3: 31}
        assert {shard for shard, each in found.items() if each.quarantine == suspect} == {2, 4}
        assert (found[3].base_index + len(found[3].entries), len(found[1].entries)) == (last, 3)
        assert log.suspect == suspect
    while log.release({1: (15, 3), 3: (31, last)}):
        pass
    log, found = opened(medium.attach(), "boot-9")
    assert {shard for shard, each in found.items() if not each.quarantine} == {1, 3}, "the damaged segment is gone"
    assert log.begin(5, 51, VOTERS, fresh=False) == suspect, "and still it may have known this one"


def test_damage_found_later_bars_also_those_who_were_new_before_it() -> None:
    medium, log, _ = suspected()
    assert log.begin(3, 31, VOTERS, fresh=True) == ""
    append(log, some(31, 1, shard=3))
    append(log, some(31, 4, shard=3))
    current = f"log/{max(medium.attach().list('log'))}"
    size = medium.attach().open(current).size()
    for back, expected in ((1, {1, 2, 3}), (400, {1, 2, 3})):
        copy = deepcopy(medium)
        copy.flip(current, 8 * (size - back))
        _, found = opened(copy.attach(), "boot-1")
        assert {shard for shard, each in found.items() if each.quarantine} == expected, back


def test_damage_at_the_end_of_the_only_segment_bars_who_had_begun_in_it() -> None:
    disk, log = with_one()
    (name,) = disk.list("log")
    end = disk.open(f"log/{name}").size()
    append(log, some(11, 4))
    disk.medium.flip(f"log/{name}", 8 * (end + 9))
    log, found = opened(disk)
    assert found[1].quarantine == log.suspect != ""


def test_a_missing_segment_bars_only_those_who_had_begun_before_it() -> None:
    disk, log = with_one(Limits(segment_bytes=2048))
    append(log, some(11, 4, 20, size=200))
    append(log, some(11, 24, 20, size=200))
    log.begin(2, 21, VOTERS, fresh=True)
    append(log, some(21, 1, shard=2))
    names = disk.list("log")
    assert len(names) == 3
    disk.remove(f"log/{names[1]}")
    for _ in range(2):
        log, found = opened(disk)
        assert "missing" in found[1].quarantine and "missing" in log.suspect
        assert not found[2].quarantine and len(found[2].entries) == 3


def test_a_base_keeps_the_whole_configuration() -> None:
    disk, log = with_one()
    append(log, ShardRound(1, 11, [], HardState(2, 0, 50), SnapshotPoint(50, 2, OTHERS)))
    for _ in range(3):
        _, found = opened(disk)
        assert found[1].configuration == OTHERS and found[1].base_index == 50
