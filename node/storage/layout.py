"""Keys and the header of a shard's slice in the node's state.

`h` shard -> header (replica id, generation, applied index and term, shard time); `i` shard -> configuration as of the applied
index; `d` shard generation capability `/` key -> value. Numbers in keys are big-endian, so that a shard's pairs lie together.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cluster.ports import StateDamaged
from cluster.raft.configuration import Configuration

DATA = (b"d", b"e")
HEADERS = (b"h", b"i")
"""All data, and all headers, lie between these keys."""

GENERATIONS = 2**32
_HEADER = struct.Struct("<BQIQQQ")
_HEADER_FORMAT = 2
_PREFIX = struct.Struct(">1sHI")


class Header(NamedTuple):
    """Whose a shard's state is, and how far. time_ms is the shard's."""

    replica: int
    generation: int = 0
    applied_index: int = 0
    applied_term: int = 0
    time_ms: int = 0

    def encode(self) -> bytes:
        return _HEADER.pack(_HEADER_FORMAT, *self)


def shard_of(key: bytes) -> int:
    """The shard that a key of a header, a configuration or data belongs to."""
    return int.from_bytes(key[1:3], "big")


def shard_prefix(shard: int) -> bytes:
    """Before all data of a shard, whatever its generation."""
    return data_prefix(shard, 0)[:3]


def header_key(shard: int) -> bytes:
    return b"h" + shard.to_bytes(2, "big")


def configuration_key(shard: int) -> bytes:
    return b"i" + shard.to_bytes(2, "big")


def data_prefix(shard: int, generation: int) -> bytes:
    return _PREFIX.pack(b"d", shard, generation)


def after(prefix: bytes) -> bytes:
    """The first key that no longer has the prefix."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def read_header(value: bytes, shard: int) -> Header:
    """StateDamaged when it is none of this format."""
    if len(value) != _HEADER.size or value[0] != _HEADER_FORMAT:
        raise StateDamaged(f"shard {shard}: the header of its state is damaged or of another format")
    return Header(*_HEADER.unpack(value)[1:])


def read_configuration(value: bytes, shard: int) -> Configuration:
    """StateDamaged when it is none."""
    try:
        return Configuration.decode(value)
    except ValueError as error:
        raise StateDamaged(f"shard {shard}: the configuration in its state: {error}") from error
