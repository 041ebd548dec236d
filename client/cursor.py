"""Cursors of scans and resume tokens of watches: text a caller keeps, that any client of the cluster understands.

Nothing is kept at a server. Both name the cluster and the query they belong to, and carry a checksum: what is foreign, of another
query or damaged is InvalidCursor, never a wrong place.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from client.arguments import text as as_text
from cluster.errors import Code, TenfoldError

FORMAT = 1
_CURSOR = 1
_TOKEN = 2
_HEAD = struct.Struct(">BB16sQ")
_CHECK = struct.Struct(">I")
_ENTRY = struct.Struct(">IQI")


def query_hash(*parts: bytes | int) -> int:
    """Of the parameters that a cursor or token is bound to."""
    return xxh3_64_intdigest(b"".join(struct.pack(">I", len(raw)) + raw for raw in map(_raw, parts)))


def _raw(part: bytes | int) -> bytes:
    return part if isinstance(part, bytes) else b"%d" % part


def encode_cursor(cluster_id: bytes, query: int, position: bytes) -> str:
    """`position`: where the next page begins (forward), or the exclusive end of what is left (reverse)."""
    return _encode(_CURSOR, cluster_id, query, position)


def decode_cursor(text: str, cluster_id: bytes, query: int) -> bytes:
    """The position. INVALID_CURSOR."""
    return _decode("cursor", text, _CURSOR, cluster_id, query)


class Place(NamedTuple):
    """In the changes of a shard: everything up to `after` was told, and `skip` changes above it."""

    after: int
    skip: int


def encode_token(cluster_id: bytes, query: int, vector: Mapping[int, Place]) -> str:
    """`vector`: the place in every shard watched."""
    return _encode(_TOKEN, cluster_id, query, b"".join(_ENTRY.pack(shard, *vector[shard]) for shard in sorted(vector)))


def decode_token(text: str, cluster_id: bytes, query: int) -> dict[int, Place]:
    """INVALID_CURSOR."""
    body = _decode("token", text, _TOKEN, cluster_id, query)
    if not body or len(body) % _ENTRY.size:
        raise TenfoldError(Code.INVALID_CURSOR, "token: malformed")
    return {shard: Place(after, skip) for shard, after, skip in _ENTRY.iter_unpack(body)}


def _encode(kind: int, cluster_id: bytes, query: int, body: bytes) -> str:
    raw = _HEAD.pack(FORMAT, kind, cluster_id, query) + body
    return base64.urlsafe_b64encode(raw + _CHECK.pack(binascii.crc32(raw))).decode().rstrip("=")


def _decode(name: str, text: str, kind: int, cluster_id: bytes, query: int) -> bytes:
    try:
        raw = base64.b64decode(as_text(text, name) + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TenfoldError(Code.INVALID_CURSOR, f"{name}: malformed") from None
    body, check = raw[: -_CHECK.size], raw[-_CHECK.size :]
    if len(body) < _HEAD.size or check != _CHECK.pack(binascii.crc32(body)):
        raise TenfoldError(Code.INVALID_CURSOR, f"{name}: malformed")
    form, found_kind, found_cluster, found_query = _HEAD.unpack_from(body)
    if form != FORMAT or found_kind != kind:
        raise TenfoldError(Code.INVALID_CURSOR, f"{name}: of another kind or a newer format")
    if found_cluster != cluster_id:
        raise TenfoldError(Code.INVALID_CURSOR, f"{name}: of another cluster")
    if found_query != query:
        raise TenfoldError(Code.INVALID_CURSOR, f"{name}: of another query")
    return body[_HEAD.size :]
