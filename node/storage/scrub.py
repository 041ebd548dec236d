"""Reads the whole state engine slowly, so that rot is found while the other replicas are still whole.

A table file never changes once it is written. Each is hashed when it is first seen, and must hash to the same ever after: the
bytes on disk are compared, past the engine's cache. For what was on disk before the start there is no such hash; the engine
itself reads it through once, with its checksums. Bounded in bytes a second, and in slices that leave the loop alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import rocksdict
import xxhash

from cluster.ports import StateDamaged

CHUNK_BYTES = 256 * 1024
SLICE_S = 0.001
SLICE_PAIRS = 32  # between two looks at the time


class Scrub:
    """One pass is `run`. What it finds is raised; exceptions of the engine go through as they are. `in_thread` runs a call
    beside the loop."""

    def __init__(self, directory: Path, engine: rocksdict.Rdict, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._directory = directory
        self._engine = engine
        self._in_thread = in_thread
        self._hashes: dict[str, int] = {}
        self._read_through = False
        self._options = rocksdict.ReadOptions()
        self._options.fill_cache(False)

    async def run(self, bytes_per_s: int) -> int:
        """Bytes read. StateDamaged."""
        total = 0
        live = self._live()
        self._hashes = {name: known for name, known in self._hashes.items() if name in live}
        for name, size in live.items():
            total += await self._table(name, size, bytes_per_s)
        if not self._read_through:
            total += await self._pairs(bytes_per_s)
            self._read_through = True
        return total

    def _live(self) -> dict[str, int]:
        return {each["name"]: each["size"] for each in self._engine.live_files()}

    async def _table(self, name: str, size: int, bytes_per_s: int) -> int:
        path, problem = self._directory / name.lstrip("/"), ""
        digest, read = xxhash.xxh3_64(), 0
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while chunk := await self._in_thread(os.pread, descriptor, CHUNK_BYTES, read):
                    digest.update(chunk)
                    read += len(chunk)
                    await asyncio.sleep(len(chunk) / bytes_per_s)
            finally:
                os.close(descriptor)
            if read != size or self._hashes.setdefault(name, digest.intdigest()) != digest.intdigest():
                problem = f"{read} bytes, not what was written"
        except OSError as error:
            problem = str(error.strerror)
        if problem and name in self._live():  # else it was compacted away meanwhile
            raise StateDamaged(f"{path}: {problem}")
        return read

    async def _pairs(self, bytes_per_s: int) -> int:
        """A cursor of its own for each slice: a long-lived one would keep files that compaction has replaced."""
        start, total = b"", 0
        while True:
            start, size = self._slice(start)
            total += size
            if not start:
                return total
            await asyncio.sleep(size / bytes_per_s)

    def _slice(self, start: bytes) -> tuple[bytes, int]:
        """Where the next slice begins, b"" after the last; and the bytes of this one."""
        until, size, count = perf_counter() + SLICE_S, 0, 0
        cursor = self._engine.iter(self._options)
        cursor.seek(start)
        while (key := cursor.key()) is not None:
            size += len(key) + len(cursor.value())
            count += 1
            if size >= CHUNK_BYTES or (count % SLICE_PAIRS == 0 and perf_counter() >= until):
                return key + b"\0", size
            cursor.next()
        cursor.status()
        return b"", size
