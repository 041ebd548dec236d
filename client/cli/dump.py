"""`kv dump` and what `kv scan` prints: items in key order, written as they come, so that any range takes bounded memory.

Standard output is written in bytes, since keys and values are bytes. A JSON document whose scan breaks is left unfinished: whoever
reads it sees that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

from client.cli.records import shown
from client.results import KvItem

WRITE_BYTES = 64 * 1024


class ByteSink:
    """Standard output, written in larger pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, *pieces: bytes) -> None:
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        if self._size >= WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(self._pieces))
        sys.stdout.buffer.flush()
        self._pieces, self._size = [], 0


def item_document(item: KvItem, keys_only: bool = False) -> dict[str, object]:
    document: dict[str, object] = {**shown("key", item.key), "version": item.version}
    if not keys_only:
        document |= shown("value", item.value)
    return document


async def write_values(items: AsyncIterator[KvItem]) -> int:
    """Each value, ended by a line feed: the bytes of a line load. How many."""
    sink = ByteSink()
    count = 0
    async for item in items:
        sink.write(item.value, b"\n")
        count += 1
    sink.flush()
    return count


async def write_lines(items: AsyncIterator[KvItem], keys_only: bool) -> int:
    """A line per item: the key, and after a tab the value."""
    sink = ByteSink()
    count = 0
    async for item in items:
        if keys_only:
            sink.write(item.key, b"\n")
        else:
            sink.write(item.key, b"\t", item.value, b"\n")
        count += 1
    sink.flush()
    return count


class JsonItems:
    """One JSON document {"items": [...], ...}, an item a line."""

    def __init__(self, keys_only: bool = False) -> None:
        self._sink = ByteSink()
        self._keys_only = keys_only
        self._count = 0

    async def write(self, items: AsyncIterator[KvItem]) -> int:
        """The items; how many. Then comes `end`."""
        self._sink.write(b'{"items": [')
        async for item in items:
            document = json.dumps(item_document(item, self._keys_only), ensure_ascii=False).encode()
            self._sink.write(b",\n" if self._count else b"\n", document)
            self._count += 1
        return self._count

    def end(self, **fields: object) -> None:
        self._sink.write(b"\n]" if self._count else b"]")
        for name, value in fields.items():
            self._sink.write(f', "{name}": {json.dumps(value, ensure_ascii=False)}'.encode())
        self._sink.write(b"}\n")
        self._sink.flush()
