"""Keys and the header of a shard's slice in the node's state.

`h` shard -> header (generation, applied index and term, shard time); `d` shard generation capability `/` key -> value.
Numbers in keys are big-endian, so that a shard's pairs lie together.
"""

from __future__ import annotations

import struct

from cluster.ports import StorageFailed

HEADERS = (b"h", b"i")
"""All headers lie between these keys."""

GENERATIONS = 2**32
_HEADER = struct.Struct("<BIQQQ")
_HEADER_FORMAT = 1
_PREFIX = struct.Struct(">1sHI")


def shard_of(key: bytes) -> int:
    """The shard of a header's key."""
    return int.from_bytes(key[1:], "big")


def shard_prefix(shard: int) -> bytes:
    """Before all data of a shard, whatever its generation."""
    return data_prefix(shard, 0)[:3]


def pack_header(generation: int, index: int, term: int, time_ms: int) -> bytes:
    return _HEADER.pack(_HEADER_FORMAT, generation, index, term, time_ms)


def header_key(shard: int) -> bytes:
    return b"h" + shard.to_bytes(2, "big")


def data_prefix(shard: int, generation: int) -> bytes:
    return _PREFIX.pack(b"d", shard, generation)


def after(prefix: bytes) -> bytes:
    """The first key that no longer has the prefix."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def read_header(value: bytes, shard: int) -> tuple[int, int, int, int]:
    """generation, applied index, applied term, shard time. StorageFailed when it is none of this format."""
    if len(value) != _HEADER.size or value[0] != _HEADER_FORMAT:
        raise StorageFailed(f"shard {shard}: the header of its state is damaged or of another format")
    _, generation, index, term, time_ms = _HEADER.unpack(value)
    return generation, index, term, time_ms
