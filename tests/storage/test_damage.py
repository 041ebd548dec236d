"""Every kind of damage to a log of several rounds and segments: in the middle it is found and never served, at the end
it is cut. After the list of reliability faults: torn tail against corruption, zero-filled tail, missing segment."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest

from cluster.raft.messages import Entry, HardState
from node.storage.log import RecoveredShard, ShardRound
from node.storage.memory import ForgettingDisk
from node.storage.record import FRAME_BYTES, RECORD_BYTES, FrameKind
from node.storage.segment import HEAD_BYTES, path_of
from tests.storage.storage_world import (
    VOTERS,
    Model,
    Place,
    after_round,
    begun,
    difference,
    drive,
    next_round,
    open_log,
    places_of,
)

ROUNDS = 24


class Written:
    """A log of `ROUNDS` rounds over several segments, what it held after each round, and where everything lies."""

    def __init__(self, seed: int = 1) -> None:
        self.medium = ForgettingDisk()
        choose = random.Random(seed)
        log, _ = drive(open_log(self.medium.attach()))
        model = begun(log)
        log.append([])
        drive(log.sync())
        self.models: list[Model] = [{}, deepcopy(model)]
        while len(self.models) <= ROUNDS:
            rounds = next_round(model, choose)
            model = after_round(model, rounds)
            log.append(rounds)
            drive(log.sync())
            self.models.append(model)
        rounds = [ShardRound(s, 11, [Entry(m.last + 1, m.hard.term, 0, b"last")], None, None) for s, m in model.items()]
        self.models.append(after_round(model, rounds))
        log.append(rounds)
        drive(log.sync())
        self.paths = [f"log/{name}" for name in self.medium.attach().list("log")]
        self.places = [place for path in self.paths for place in places_of(self.medium.attach(), path)]
        self.last_number = max(place.number for place in self.places)
        self.model = self.models[-1]

    def last(self, place: Place) -> bool:
        return place.number == self.last_number and place.kind == FrameKind.ROUND

    def copy(self) -> ForgettingDisk:
        return deepcopy(self.medium)


@pytest.fixture(scope="module")
def written() -> Written:
    return Written()


def recovered(medium: ForgettingDisk, boot: str) -> dict[int, RecoveredShard]:
    """What recovery finds, which must be the same when it is asked again."""
    _, found = drive(open_log(medium.attach(), boot))
    _, again = drive(open_log(medium.attach(), boot))
    assert found == again
    return found


def quarantined(found: dict[int, RecoveredShard]) -> set[int]:
    return {shard for shard, each in found.items() if each.quarantine}


def others_are_whole(model: Model, found: dict[int, RecoveredShard]) -> None:
    bad = quarantined(found)
    healthy = {shard: each for shard, each in found.items() if shard not in bad}
    assert difference({shard: model[shard] for shard in healthy}, healthy) == ""


def test_the_log_spans_segments_and_is_whole(written: Written) -> None:
    assert len(written.paths) >= 3
    for boot in ("boot-1", "boot-2"):
        assert difference(written.model, recovered(written.copy(), boot)) == ""


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_a_damaged_payload_quarantines_its_shard_only(written: Written, boot: str) -> None:
    tried = 0
    for place in written.places:
        if place.shard and place.length > RECORD_BYTES and not (written.last(place) and boot == "boot-2"):
            medium = written.copy()
            medium.flip(place.path, (place.offset + place.length - 1) * 8 + 3)
            found = recovered(medium, boot)
            assert quarantined(found) == {place.shard}, place
            assert set(found) == set(written.model)
            others_are_whole(written.model, found)
            tried += 1
    assert tried > 30


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_a_damaged_header_quarantines_every_shard_that_had_begun(written: Written, boot: str) -> None:
    first = written.places[0]
    for place in written.places:
        if not (written.last(place) and boot == "boot-2"):
            for byte in (0, FRAME_BYTES // 2, min(place.length, FRAME_BYTES) - 2):
                medium = written.copy()
                medium.flip(place.path, (place.offset + byte) * 8)
                found = recovered(medium, boot)
                if place == first:  # the checkpoint before anything had begun: what begins later lacks nothing
                    assert difference(written.model, found) == "" and drive(open_log(medium.attach(), boot))[0].suspect
                else:
                    assert quarantined(found) == set(written.model), (place, byte)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_head_of_a_segment_quarantines_every_shard(written: Written, number: int) -> None:
    for byte in range(0, HEAD_BYTES, 11):
        medium = written.copy()
        medium.flip(written.paths[number], byte * 8 + 1)
        found = recovered(medium, "boot-2")
        assert quarantined(found) == set(found) and found, byte


def test_damage_in_the_last_round_after_a_restart_of_the_machine_is_a_torn_tail(written: Written) -> None:
    before = written.models[-2]
    for place in filter(written.last, written.places):
        for byte in range(0, place.length, 5):
            medium = written.copy()
            medium.flip(place.path, (place.offset + byte) * 8 + 6)
            assert difference(before, recovered(medium, "boot-2")) == "", (place, byte)


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_an_incomplete_last_round_is_cut_on_either_boot(written: Written, boot: str) -> None:
    start = next(place.offset for place in filter(written.last, written.places))
    size = written.medium.attach().open(written.paths[-1]).size()
    for cut in range(start, size):
        medium = written.copy()
        medium.attach().open(written.paths[-1], writable=True).truncate(cut)
        assert difference(written.models[-2], recovered(medium, boot)) == "", cut


def test_a_tail_of_zeros_is_cut(written: Written) -> None:
    start = next(place.offset for place in filter(written.last, written.places))
    size = written.medium.attach().open(written.paths[-1]).size()
    for cut in range(start, size, 3):
        medium = written.copy()
        file = medium.attach().open(written.paths[-1], writable=True)
        file.truncate(cut)
        file.append([bytes(size - cut + 4096)])
        assert difference(written.models[-2], recovered(medium, "boot-2")) == "", cut
    medium = written.copy()
    medium.attach().open(written.paths[-1], writable=True).append([bytes(100_000)])
    for boot in ("boot-1", "boot-2"):
        assert difference(written.model, recovered(deepcopy(medium), boot)) == ""


def test_a_missing_segment_in_the_middle_quarantines_every_shard(written: Written) -> None:
    medium = written.copy()
    medium.attach().remove(written.paths[1])
    found = recovered(medium, "boot-1")
    assert quarantined(found) == set(written.model) and "2 to 2 are missing" in found[1].quarantine


def test_a_missing_first_segment_shows_as_a_base_above_the_state(written: Written) -> None:
    """It cannot be told from a released one, so the base says from where on the log is whole."""
    medium = written.copy()
    medium.attach().remove(written.paths[0])
    for shard, each in recovered(medium, "boot-1").items():
        model = written.model[shard]
        assert not each.quarantine and each.hard_state == model.hard
        assert each.base_index > 0 and model.terms.get(each.base_index, each.base_term) == each.base_term
        assert each.entries == [model.entries[index] for index in sorted(model.entries) if index > each.base_index]


def test_no_single_flipped_bit_is_ever_served(written: Written) -> None:
    """Wherever the bit is, a shard that is not quarantined holds what was written, but for a cut last round."""
    choose = random.Random(3)
    for path in written.paths:
        size = written.medium.attach().open(path).size()
        for byte in range(0, size, 37):
            medium = written.copy()
            medium.flip(path, byte * 8 + choose.randrange(8))
            found = drive(open_log(medium.attach(), "boot-2"))[1]
            healthy = {shard: each for shard, each in found.items() if not each.quarantine}
            problems = [
                difference({shard: model[shard] for shard in healthy}, healthy)
                for model in (written.model, written.models[-2])
            ]
            assert "" in problems, (path, byte, problems)


def test_a_quarantine_outlives_the_segment_that_was_damaged(written: Written) -> None:
    medium = written.copy()
    place = next(p for p in written.places if p.shard == 2 and p.length > RECORD_BYTES and p.kind == FrameKind.ROUND)
    medium.flip(place.path, (place.offset + place.length - 1) * 8)
    log, found = drive(open_log(medium.attach(), "boot-2"))
    reason = found[2].quarantine
    assert place.path in reason
    assert log.release({1: (11, 10**9), 3: (11, 10**9)}) == len(written.paths)
    _, found = drive(open_log(medium.attach(), "boot-3"))
    assert found[2].quarantine == reason and not found[1].quarantine


def test_damage_whose_shard_is_unknown_also_bars_shards_the_log_does_not_know(written: Written) -> None:
    medium = written.copy()
    medium.flip(written.paths[-1], 8)
    log, found = drive(open_log(medium.attach(), "boot-2"))
    assert log.suspect and quarantined(found) == set(found)
    assert log.begin(9, 91, found[1].configuration, fresh=False) == log.suspect
    with pytest.raises(AssertionError, match="quarantined"):
        log.append([ShardRound(9, 91, [Entry(1, 1, 0, b"")], None, None)])
    log.append([])
    drive(log.sync())
    log, found = drive(open_log(medium.attach(), "boot-3"))
    assert 9 in quarantined(found) and log.suspect


def test_after_a_cut_the_log_goes_on(written: Written) -> None:
    medium = written.copy()
    place = next(filter(written.last, written.places))
    medium.attach().open(place.path, writable=True).truncate(place.offset + 20)
    model = written.models[-2]
    choose = random.Random(9)
    for boot in range(2, 6):
        log, found = drive(open_log(medium.attach(), f"boot-{boot}"))
        assert difference(model, found) == ""
        for _ in range(10):
            rounds = next_round(model, choose)
            model = after_round(model, rounds)
            log.append(rounds)
            drive(log.sync())
        medium.crash(choose)


def test_log_bytes_stored_as_a_value_are_never_taken_for_rounds(written: Written) -> None:
    """A user keeps a copy of this very log in an entry; then the tail is torn inside it."""
    medium = written.copy()
    log, _ = drive(open_log(medium.attach(), "boot-1"))
    model = written.model
    active = sorted(medium.attach().list("log"))[-1]
    copy = bytes(medium.names[f"log/{active}"].data)
    entry = Entry(model[1].last + 1, model[1].hard.term, 0, copy * 3)
    log.append(
        [ShardRound(1, 11, [entry], HardState(model[1].hard.term, model[1].hard.vote, model[1].hard.commit), None)]
    )
    assert path_of(int(active[:16], 16)) == f"log/{active}"
    data = medium.names[f"log/{active}"].data
    data[len(data) - len(copy) * 2 - 400] ^= 1
    medium.names[f"log/{active}"].durable = bytearray(data)
    assert difference(model, drive(open_log(medium.attach(), "boot-2"))[1]) == ""


def test_a_damaged_log_is_copied_aside_before_it_is_released() -> None:
    medium = ForgettingDisk()
    disk = medium.attach()
    log, _ = drive(open_log(disk))
    for shard in (1, 2):
        log.begin(shard, 11, VOTERS, fresh=False)
    log.append([])
    drive(log.sync())
    for index in range(1, 40):
        log.append([ShardRound(s, 11, [Entry(index, 1, 0, b"x" * 200)], HardState(1, 0, 0), None) for s in (1, 2)])
        drive(log.sync())
    first = f"log/{min(disk.list('log'))}"
    whole = disk.open(first)
    before = whole.read(0, whole.size())
    medium.flip(first, 8 * (whole.size() // 2))
    medium.incarnation += 1
    disk = medium.attach()
    log, found = drive(open_log(disk))
    assert any(shard.quarantine for shard in found.values())
    copies = [name for name in disk.list("damaged") if name.endswith(".log")]
    assert first.rpartition("/")[2] in copies
    log.release({1: (11, 1000), 2: (11, 1000)})
    copy = disk.open(f"damaged/{first.rpartition('/')[2]}")
    kept = copy.read(0, copy.size())
    assert len(kept) == len(before) and sum(a != b for a, b in zip(kept, before, strict=True)) == 1
    medium.incarnation += 1
    again, _ = drive(open_log(medium.attach()))
    assert sorted(medium.attach().list("damaged")) == sorted(disk.list("damaged")), "once, not at every start"
    assert again is not log
    for name in disk.list("damaged"):
        if not name.endswith(".log"):
            medium.flip(f"damaged/{name}", 1300)
    medium.incarnation += 1
    _, found = drive(open_log(medium.attach()))
    assert any(shard.quarantine for shard in found.values()), "the list of what was copied is nothing to fail for"
