"""Checks the engine's MANIFEST before the engine reads it: the log that names the table files which count.

RocksDB 9.8 takes a record whose length runs past the end of the file for a write that was cut short, and forgets it with all
that follow: one flipped bit takes the state back in time. One in a record's kind lets it spin for ever. Format: blocks of 32 KiB;
records of masked CRC-32C (over kind and payload), length, kind, payload; none crosses a block
(https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format).
"""

from __future__ import annotations

import struct
from pathlib import Path

BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")
_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_remainder(byte) for byte in range(256))


def masked_crc32c(data: bytes) -> int:
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def manifest_path(directory: Path) -> Path:
    """The one that CURRENT names. OSError, ValueError."""
    return directory / (directory / "CURRENT").read_text().removesuffix("\n")


def problem_with_manifest(directory: Path) -> str:
    """What is damaged in the MANIFEST that counts; "" when nothing is, and when there is none: that the engine says itself."""
    try:
        path = manifest_path(directory)
        data = path.read_bytes()
    except (OSError, ValueError):
        return ""
    at = problem_in_records(data)
    return "" if at is None else f"{path.name} is damaged at byte {at}"


def problem_in_records(data: bytes) -> int | None:
    """Where the first damaged record begins. A write that was cut short at the end is no damage."""
    at = 0
    while at < len(data):
        room = BLOCK_BYTES - at % BLOCK_BYTES
        end = at + room if room < _HEADER.size else _end_of_record(data, at)
        if not end:
            return None if _is_torn(data, at) else at
        at = end
    return None


def _end_of_record(data: bytes, at: int) -> int:
    """Where the record at `at` ends; 0 when there is no whole one."""
    if len(data) - at < _HEADER.size:
        return 0
    crc, length, _ = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + length
    if end > min(len(data), at - at % BLOCK_BYTES + BLOCK_BYTES):
        return 0
    return end if masked_crc32c(data[at + _HEADER.size - 1 : end]) == crc else 0


def _is_torn(data: bytes, at: int) -> bool:
    """Whether what lies from `at` on can be the rest of a write that never ended: it runs past the end, also with the length
    that its CRC is right for, and nothing whole follows."""
    if not any(data[at:]) or len(data) - at < _HEADER.size:
        return True
    crc, length, _ = _HEADER.unpack_from(data, at)
    runs_past = at + _HEADER.size + length > len(data)
    if not runs_past or masked_crc32c(data[at + _HEADER.size - 1 :]) == crc:
        return False
    return not any(_end_of_record(data, later) for later in range(at + 1, len(data) - _HEADER.size))
