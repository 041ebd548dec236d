"""Files say what they are and whose; a small file is replaced whole or not at all."""

from __future__ import annotations

import random
import struct
from zlib import crc32

import pytest

from cluster.errors import Code
from cluster.ports import StorageFailed
from node.storage.identity import (
    BYTES,
    LOG,
    SEALED,
    STATE,
    DamagedIdentity,
    ForeignFile,
    Identity,
    Sealed,
    read_identity,
)
from node.storage.memory import ForgettingDisk, MemoryDisk
from tests.storage.storage_world import DyingDisk, PowerCut, drive

MINE = Identity(bytes(range(16)), "n1", "boot-1")


def test_it_comes_back_and_the_boot_id_may_differ() -> None:
    data = MINE.encode(LOG) + b"more"
    assert len(MINE.encode(LOG)) == BYTES
    assert read_identity(LOG, data, "p", Identity(MINE.cluster_id, "n1", "boot-2")) == MINE


@pytest.mark.parametrize("kind, found, age", [(LOG, 7, "newer"), (LOG, 1, "older"), (STATE, 1, "older")])
def test_another_format_is_refused_with_both_numbers(kind: bytes, found: int, age: str) -> None:
    head = bytearray(MINE.encode(kind)[:-4])
    struct.pack_into("<I", head, 8, found)
    with pytest.raises(ForeignFile, match=f"log/1: format {found} is {age} than 2") as refusal:
        read_identity(kind, bytes(head) + struct.pack("<I", crc32(head)), "log/1", MINE)
    assert refusal.value.code is Code.INVALID_ARGUMENT and refusal.value.details["found"] == found


@pytest.mark.parametrize(
    "expected, values",
    [
        (Identity(b"\xaa" * 16, "n1"), (bytes(range(16)).hex(), "aa" * 16)),
        (Identity(bytes(range(16)), "n2"), ("n1", "n2")),
    ],
)
def test_another_clusters_or_nodes_file_is_refused(expected: Identity, values: tuple[str, str]) -> None:
    with pytest.raises(ForeignFile) as refusal:
        read_identity(LOG, MINE.encode(LOG), "some/path", expected)
    assert refusal.value.code is Code.WRONG_CLUSTER
    for named in ("some/path", *values):
        assert named in refusal.value.message


def test_every_flipped_bit_and_every_short_head_is_damage() -> None:
    whole = MINE.encode(LOG)
    for bit in range(0, len(whole) * 8, 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedIdentity):
            read_identity(LOG, bytes(damaged), "p", MINE)
    for size in range(len(whole)):
        with pytest.raises(DamagedIdentity):
            read_identity(LOG, whole[:size], "p", MINE)
    with pytest.raises(DamagedIdentity):
        read_identity(SEALED, whole, "p", MINE)


def test_a_sealed_file_is_the_old_or_the_new_one_after_any_power_cut() -> None:
    for steps in range(1, 16):
        for seed in range(12):
            medium = ForgettingDisk()
            Sealed(medium.attach(), "facts").read(MINE)
            drive(Sealed(medium.attach(), "facts").write(MINE, b"old"))
            dying = DyingDisk(medium.attach(), steps, after=bool(seed % 2))
            ended = False
            try:
                drive(Sealed(dying, "facts").write(MINE, b"new"))
                ended = True
            except PowerCut:
                pass
            medium.crash(random.Random(seed))
            found = Sealed(medium.attach(), "facts").read(MINE)
            assert found == b"new" if ended else found in (b"old", b"new")
            drive(Sealed(medium.attach(), "facts").write(MINE, b"newer"))
            assert Sealed(medium.attach(), "facts").read(MINE) == b"newer"


def sealed_facts() -> tuple[MemoryDisk, Sealed, int]:
    disk = MemoryDisk()
    sealed = Sealed(disk, "facts")
    assert sealed.read(MINE) is None
    drive(sealed.write(MINE, b"body"))
    assert disk.list("") == ["facts", "facts.twin"]
    return disk, sealed, disk.open("facts").size()


@pytest.mark.parametrize("copy", ["facts", "facts.twin"])
def test_a_damaged_copy_is_mended_from_its_twin(copy: str) -> None:
    disk, sealed, size = sealed_facts()
    whole = bytes(disk.medium.names[copy].data)
    for byte in range(size):
        disk.medium.flip(copy, byte * 8 + byte % 8)
        assert sealed.read(MINE) == b"body"
        assert bytes(disk.medium.names[copy].data) == whole, "so that the other one may rot next"
    disk.open(copy, writable=True).truncate(BYTES + 2)
    assert sealed.read(MINE) == b"body" and bytes(disk.medium.names[copy].data) == whole
    disk.remove(copy)
    assert sealed.read(MINE) == b"body" and bytes(disk.medium.names[copy].data) == whole
    assert disk.list("") == ["facts", "facts.twin"]
    disk.medium.flip(copy, 3)
    disk.medium.capacity = 0
    assert sealed.read(MINE) == b"body", "also where there is no room to mend it"


def test_two_damaged_copies_are_not_read() -> None:
    for byte in range(0, sealed_facts()[2], 7):
        disk, sealed, size = sealed_facts()
        disk.medium.flip("facts", byte * 8 + 2)
        disk.medium.flip("facts.twin", (size - 1 - byte) * 8 + 1)
        with pytest.raises(StorageFailed):
            sealed.read(MINE)
    disk, sealed, _ = sealed_facts()
    disk.remove("facts.twin")
    disk.medium.flip("facts", 900)
    with pytest.raises(StorageFailed):
        sealed.read(MINE)


def test_a_mended_copy_is_no_danger_to_the_other_after_a_power_cut() -> None:
    for seed in range(20):
        disk, sealed, _ = sealed_facts()
        disk.medium.flip("facts", 1000)
        assert sealed.read(MINE) == b"body"
        disk.medium.crash(random.Random(seed))
        assert Sealed(disk.medium.attach(), "facts").read(MINE) == b"body"


def test_the_files_of_another_cluster_are_refused_in_either_copy() -> None:
    disk, sealed, _ = sealed_facts()
    with pytest.raises(ForeignFile):
        sealed.read(Identity(b"other", "n1"))
    drive(Sealed(disk, "other").write(Identity(b"other", "n1"), b"body"))
    disk.rename("other.twin", "facts.twin")
    with pytest.raises(ForeignFile):
        sealed.read(MINE)
