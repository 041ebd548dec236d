"""The log: what goes in comes out, the laws it asserts, its segments, and what a full or failing disk does to it."""

from __future__ import annotations

import random

import pytest

from cluster.limits import Limits
from cluster.ports import DiskFull, StorageFailed
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, HardState, SnapshotPoint
from cluster.types import EntryKind
from node.storage.identity import ForeignFile
from node.storage.log import Log, ShardRound
from node.storage.memory import ForgettingDisk, MemoryDisk
from tests.storage.storage_world import CLUSTER, VOTERS, after_round, begun, difference, drive, next_round, open_log


def entries(first: int, count: int, term: int = 1, payload: bytes = b"x" * 40) -> list[Entry]:
    return [Entry(first + n, term, EntryKind.NORMAL, payload) for n in range(count)]


def append(log: Log, *rounds: ShardRound) -> int:
    written = log.append(rounds)
    drive(log.sync())
    return written


def one(disk: MemoryDisk | None = None) -> tuple[Log, MemoryDisk]:
    disk = disk or MemoryDisk()
    log, _ = drive(open_log(disk))
    log.begin(1, 11, VOTERS, fresh=False)
    append(log)
    return log, disk


@pytest.mark.parametrize("seed", range(12))
def test_what_goes_in_comes_out(seed: int) -> None:
    choose, disk = random.Random(seed), MemoryDisk()
    log, found = drive(open_log(disk))
    assert found == {}
    model = begun(log)
    append(log)
    for _ in range(choose.randint(1, 60)):
        rounds = next_round(model, choose)
        model = after_round(model, rounds)
        append(log, *rounds)
    drive(log.close())
    assert difference(model, drive(open_log(disk))[1]) == ""


def test_every_kind_and_field_is_kept() -> None:
    log, disk = one()
    big = 2**63
    each = [Entry(n + 1, n + 1, kind, bytes([kind]) * n) for n, kind in enumerate(EntryKind)]
    append(log, ShardRound(1, 11, each, HardState(big, 13, 4), None))
    log.begin(1023, big, Configuration((big, 1)), fresh=False)
    append(log, ShardRound(1023, big, [], None, SnapshotPoint(big, big - 1, Configuration((5,)))))
    found = drive(open_log(disk))[1]
    assert found[1].entries == each and found[1].hard_state == HardState(big, 13, 4)
    assert found[1].configuration == VOTERS and found[1].replica == 11
    assert (found[1023].base_index, found[1023].base_term, found[1023].replica) == (big, big - 1, big)
    assert found[1023].configuration == Configuration((5,)) and found[1023].hard_state.commit == big


def test_the_bytes_and_the_numbers_of_rounds_are_counted() -> None:
    log, disk = one()
    before_total, before_disk = log.total_bytes, log.disk_bytes
    written = append(log, ShardRound(1, 11, entries(1, 3), HardState(1, 11, 0), None))
    assert log.total_bytes - before_total == log.disk_bytes - before_disk == written > 3 * 40
    assert log.append([]) == 0 and log.append([ShardRound(1, 11, [], None, None)]) == 0
    assert disk.medium.used_bytes() == log.disk_bytes


def test_a_round_waits_for_the_sync_of_the_one_before() -> None:
    log, _ = one()
    log.append([ShardRound(1, 11, entries(1, 1), None, None)])
    with pytest.raises(AssertionError, match="not synced"):
        log.append([ShardRound(1, 11, entries(2, 1), None, None)])
    drive(log.sync())
    log.append([ShardRound(1, 11, entries(2, 1), None, None)])


@pytest.mark.parametrize(
    "bad, law",
    [
        (ShardRound(1, 12, entries(4, 1), None, None), "replica"),
        (ShardRound(1, 11, entries(5, 1), None, None), "missing"),
        (ShardRound(1, 11, entries(2, 1, 2), None, None), "committed"),
        (ShardRound(1, 11, entries(4, 1, 0), None, None), "of term 0"),
        (ShardRound(1, 11, [*entries(4, 1), *entries(6, 1)], None, None), "gaps"),
        (ShardRound(1, 11, [], HardState(1, 11, 2), None), "goes back"),
        (ShardRound(1, 11, [], HardState(2, 11, 1), None), "goes back"),
        (ShardRound(1, 11, [], HardState(2, 12, 2), None), "vote"),
        (ShardRound(1, 11, [], HardState(2, 11, 4), None), "above the last"),
        (ShardRound(1, 11, [], None, SnapshotPoint(1, 1, VOTERS)), "below commit"),
    ],
)
def test_a_round_that_breaks_a_law_of_raft_is_refused(bad: ShardRound, law: str) -> None:
    log, disk = one()
    append(log, ShardRound(1, 11, entries(1, 3), HardState(2, 11, 2), None))
    size = disk.medium.used_bytes()
    with pytest.raises(AssertionError, match=law):
        log.append([bad])
    assert disk.medium.used_bytes() == size


def test_two_additions_to_one_shard_in_a_round_follow_each_other() -> None:
    log, disk = one()
    append(
        log,
        ShardRound(1, 11, [], HardState(3, 0, 7), SnapshotPoint(7, 2, VOTERS)),
        ShardRound(1, 11, entries(8, 2, 3), HardState(3, 12, 8), None),
    )
    found = drive(open_log(disk))[1][1]
    assert (found.base_index, len(found.entries), found.hard_state) == (7, 2, HardState(3, 12, 8))


def test_entries_at_or_below_the_given_index_are_discarded_and_the_base_moves() -> None:
    log, disk = one()
    append(log, ShardRound(1, 11, entries(1, 50) + entries(51, 50, 2), HardState(2, 11, 90), None))
    for discard, base, term in ((0, 0, 0), (30, 30, 1), (70, 70, 2), (100, 100, 2)):
        found = drive(open_log(disk, discard={1: (11, discard)}))[1][1]
        assert (found.base_index, found.base_term) == (base, term)
        assert [each.index for each in found.entries] == list(range(base + 1, 101))


def test_a_segment_goes_when_all_its_entries_are_durably_applied() -> None:
    log, disk = one()
    log.begin(2, 21, VOTERS, fresh=False)
    index = 0
    while len(disk.list("log")) < 5:
        append(log, ShardRound(1, 11, entries(index + 1, 5), HardState(1, 11, index), None))
        index += 5
    append(log, ShardRound(2, 21, entries(1, 1), HardState(7, 12, 1), None))
    assert log.release({1: (11, 0)}) == log.release({}) == 0
    assert log.release({1: (11, index)}) == 4
    assert len(disk.list("log")) == 1 and log.disk_bytes == disk.medium.used_bytes()
    found = drive(open_log(disk))[1]
    assert found[1].hard_state == HardState(1, 11, index - 5) and found[2].hard_state == HardState(7, 12, 1)
    assert found[1].base_index + len(found[1].entries) == index and not found[1].quarantine
    assert [each.index for each in found[2].entries] == [1]


def test_an_idle_shard_pins_a_segment_only_while_it_needs_it() -> None:
    """Its uncommitted tail was replaced by a shorter one: the old entries pin nothing."""
    log, disk = one()
    log.begin(2, 21, VOTERS, fresh=False)
    append(log, ShardRound(2, 21, entries(1, 10), HardState(1, 0, 0), None))
    append(log, ShardRound(2, 21, entries(3, 1, 2), HardState(2, 0, 3), None))
    index = 0
    while len(disk.list("log")) < 4:
        append(log, ShardRound(1, 11, entries(index + 1, 5), None, None))
        index += 5
    assert log.release({1: (11, index), 2: (21, 2)}) == 0
    assert log.release({1: (11, index), 2: (21, 3)}) == 3
    found = drive(open_log(disk))[1][2]
    assert (found.base_index, found.base_term, found.entries) == (3, 2, [])


def test_a_quarantine_is_kept_and_bars_further_rounds() -> None:
    log, disk = one()
    append(log, ShardRound(1, 11, entries(1, 1), HardState(1, 11, 0), None))
    log.quarantine(1, "its state is damaged")
    log.quarantine(1, "another reason")
    with pytest.raises(AssertionError, match="quarantined"):
        log.append([ShardRound(1, 11, entries(2, 1), None, None)])
    append(log)
    for _ in range(3):
        log, found = drive(open_log(disk))
        assert found[1].quarantine == "its state is damaged"
    log.begin(1, 99, VOTERS, fresh=False)
    append(log, ShardRound(1, 99, entries(1, 1), HardState(1, 99, 0), None))
    found = drive(open_log(disk))[1]
    assert (found[1].replica, found[1].quarantine, len(found[1].entries)) == (99, "", 1)


def test_closing_writes_what_waits_for_a_round() -> None:
    log, disk = one()
    log.quarantine(1, "bad")
    drive(log.close())
    assert drive(open_log(disk))[1][1].quarantine == "bad"
    with pytest.raises(StorageFailed):
        log.append([])


def test_the_same_replica_does_not_begin_twice() -> None:
    log, _ = one()
    with pytest.raises(AssertionError, match="has begun"):
        log.begin(1, 11, VOTERS, fresh=False)


def test_a_full_disk_writes_nothing_and_the_round_may_be_tried_again() -> None:
    log, disk = one()
    append(log, ShardRound(1, 11, entries(1, 2), HardState(1, 11, 0), None))
    disk.medium.capacity = disk.medium.used_bytes() + 50
    again = [ShardRound(1, 11, entries(3, 2), HardState(1, 11, 2), None)]
    for _ in range(3):
        with pytest.raises(DiskFull):
            log.append(again)
    disk.medium.capacity = None
    append(log, *again)
    found = drive(open_log(disk))[1][1]
    assert len(found.entries) == 4 and found.hard_state.commit == 2 and not found.quarantine


def test_a_disk_too_full_for_a_new_segment_lets_the_old_one_grow() -> None:
    disk = MemoryDisk()
    log, _ = drive(open_log(disk, limits=Limits(segment_bytes=2048)))
    log.begin(1, 11, VOTERS, fresh=False)
    disk.medium.capacity = disk.medium.used_bytes() + 2300
    append(log, ShardRound(1, 11, entries(1, 1, payload=bytes(2000)), HardState(1, 11, 0), None))
    assert [name for name in disk.list("log") if name.endswith(".log")] == ["0000000000000001.log"]
    disk.medium.capacity = None
    append(log, ShardRound(1, 11, entries(2, 1, payload=bytes(1000)), HardState(1, 11, 1), None))
    assert len(disk.list("log")) == 2
    assert len(drive(open_log(disk))[1][1].entries) == 2


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_sync_stops_the_log_for_good(nth: int) -> None:
    """The first sync of a rolling round is the round's, the second the new segment's."""
    disk = MemoryDisk(ForgettingDisk())
    log, _ = one(disk)
    disk.medium.fail_sync_in = nth
    log.append([ShardRound(1, 11, entries(1, 1, payload=bytes(3000)), None, None)])
    with pytest.raises(StorageFailed):
        drive(log.sync())
    for _ in range(3):
        with pytest.raises(StorageFailed):
            drive(log.sync())
        with pytest.raises(StorageFailed):
            log.append([])
        with pytest.raises(StorageFailed):
            log.release({1: (11, 9)})
    drive(log.close())


@pytest.mark.parametrize("cluster, node, named", [(b"other", "n1", b"other".hex()), (CLUSTER, "n2", "n2")])
def test_the_log_of_another_cluster_or_node_is_refused(cluster: bytes, node: str, named: str) -> None:
    _, disk = one()
    before = {name: bytes(inode.data) for name, inode in disk.medium.names.items()}
    with pytest.raises(ForeignFile, match=named) as refusal:
        drive(Log.open(disk, cluster_id=cluster, node=node, boot_id="b", limits=Limits()))
    assert "log/0000000000000001.log" in refusal.value.message
    assert {name: bytes(inode.data) for name, inode in disk.medium.names.items()} == before


def test_a_new_segment_whose_name_may_be_there_for_good_is_never_given_up() -> None:
    """The directory's sync fails for want of room after the rename: going on in the old segment would lose rounds."""
    medium = ForgettingDisk()
    disk = medium.attach()
    log, _ = drive(open_log(disk))
    log.begin(1, 11, VOTERS, fresh=False)
    append(log)
    sync_directory = disk.sync_directory
    full = [True]

    def once_full(path: str) -> None:
        if full.pop():
            raise DiskFull("no room for the name")
        sync_directory(path)

    disk.sync_directory = once_full  # type: ignore[method-assign]
    index = synced = 0
    with pytest.raises(StorageFailed) as failure:
        while full:
            index += 1
            append(log, ShardRound(1, 11, entries(index, 1), HardState(1, 0, 0) if index == 1 else None, None))
            synced = index
    assert not isinstance(failure.value, DiskFull)
    with pytest.raises(StorageFailed):
        log.append([ShardRound(1, 11, entries(index + 1, 1), None, None)])
    medium.incarnation += 1
    _, found = drive(open_log(medium.attach()))
    assert found[1].entries[-1].index >= synced and not found[1].quarantine
