"""Every bit of the engine's MANIFEST counts, and only a write that was cut short is forgiven. Shown on a real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.ports import StateDamaged
from node.storage.identity import Identity
from node.storage.manifest import BLOCK_BYTES, manifest_path, masked_crc32c, problem_in_records, problem_with_manifest
from node.storage.rocks_state import RocksState

MINE = Identity(b"cluster", "n1")


def grown(path: Path, flushes: int) -> bytes:
    """The MANIFEST of an engine that was flushed so often."""
    state = RocksState(path, MINE)
    for _ in range(flushes):
        state.write({os.urandom(20): b"x"})
        state._engine.flush(True)
    state.close()
    return manifest_path(path).read_bytes()


def test_the_checksum_is_the_engines() -> None:
    """CRC-32C of the check string (RFC 3720's polynomial) is e3069283."""
    crc = 0xE3069283
    assert masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_every_flipped_bit_is_damage_and_every_cut_is_a_write_that_never_ended(tmp_path: Path) -> None:
    data = grown(tmp_path / "s", 2)
    assert problem_in_records(data) is None and problem_with_manifest(tmp_path / "s") == ""
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert problem_in_records(bytes(damaged)) is not None, bit
    for size in range(len(data)):
        assert problem_in_records(data[:size]) is None, size
    assert problem_in_records(data + bytes(100_000)) is None


def test_one_of_many_blocks_is_read_too(tmp_path: Path) -> None:
    data = grown(tmp_path / "s", 180)
    assert len(data) > BLOCK_BYTES and problem_in_records(data) is None
    for at in range(0, len(data), 5003):
        damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        assert problem_in_records(damaged) is not None, at


@pytest.mark.parametrize("bit", [1, 2, 3])
def test_the_engine_is_not_asked_to_read_a_damaged_one(tmp_path: Path, bit: int) -> None:
    """Without the check it forgets its youngest table (bit 1: the length of the record), or never comes back (bit 2 of a kind)."""
    data = grown(tmp_path / "s", 2)
    last = at = 0
    while at < len(data):
        last, at = at, at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
    place = last + (6 if bit == 2 else 4)
    path = manifest_path(tmp_path / "s")
    path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
    with pytest.raises(StateDamaged, match="MANIFEST"):
        RocksState(tmp_path / "s", MINE)


@pytest.mark.parametrize("at", range(16))
def test_whatever_flips_in_the_name_of_the_manifest_is_damage(tmp_path: Path, at: int) -> None:
    grown(tmp_path / "s", 1)
    current = tmp_path / "s" / "CURRENT"
    name = current.read_bytes()
    for bit in range(8):
        current.write_bytes(name[:at] + bytes([name[at] ^ 1 << bit]) + name[at + 1 :])
        with pytest.raises(StateDamaged):
            RocksState(tmp_path / "s", MINE)
    current.write_bytes(name)
    RocksState(tmp_path / "s", MINE).close()


def test_the_options_on_disk_do_not_count(tmp_path: Path) -> None:
    grown(tmp_path / "s", 1)
    for path in (tmp_path / "s").glob("OPTIONS-*"):
        path.write_text(path.read_text().replace("disable_auto_compactions=false", "disable_auto_compactions=true"))
    RocksState(tmp_path / "s", MINE).close()
    log = (tmp_path / "s" / "LOG").read_text()
    assert "Options.disable_auto_compactions: 0" in log and "Options.disable_auto_compactions: 1" not in log
