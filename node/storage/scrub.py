"""Reads the whole state engine slowly, so that rot is found while the other replicas are still whole.

A table file never changes once it is written, and the MANIFEST only grows. What was seen of them is hashed, and must hash to
the same ever after: the bytes on disk are compared, past the engine's cache. For what was on disk before the start there is no
such hash; the engine itself reads it through once, with its checksums. Bounded in bytes a second, in slices that leave the
loop alone.
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
from node.storage.manifest import manifest_path

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
        self._seen: dict[Path, tuple[int, int]] = {}  # so many first bytes of it, and their hash
        self._read_through = False
        self._options = rocksdict.ReadOptions()
        self._options.fill_cache(False)

    async def run(self, bytes_per_s: int) -> int:
        """Bytes read. StateDamaged."""
        total = 0
        live = self._live()
        self._seen = {path: seen for path, seen in self._seen.items() if path in live}
        for path, size in live.items():
            total += await self._file(path, size, bytes_per_s)
        if not self._read_through:
            total += await self._pairs(bytes_per_s)
            self._read_through = True
        return total

    def _live(self) -> dict[Path, int]:
        """The files that count, and the size a table must have; -1: it grows."""
        tables = {self._directory / each["name"].lstrip("/"): int(each["size"]) for each in self._engine.live_files()}
        try:
            return {manifest_path(self._directory): -1, **tables}
        except (OSError, ValueError) as error:
            raise StateDamaged(f"{self._directory / 'CURRENT'}: {error}") from error

    async def _file(self, path: Path, size: int, bytes_per_s: int) -> int:
        problem, read = "", 0
        seen, known = self._seen.get(path, (0, 0))
        digest = xxhash.xxh3_64()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                wanted = min(seen, CHUNK_BYTES) or CHUNK_BYTES
                while chunk := await self._in_thread(os.pread, descriptor, wanted, read):
                    digest.update(chunk)
                    read += len(chunk)
                    if read == seen and digest.intdigest() != known:
                        problem = "not what was written"
                    wanted = min(seen - read, CHUNK_BYTES) if read < seen else CHUNK_BYTES
                    await asyncio.sleep(len(chunk) / bytes_per_s)
            finally:
                os.close(descriptor)
            if read < seen or size not in (-1, read):
                problem = f"{read} bytes, not {max(size, seen)}"
        except OSError as error:
            problem = str(error.strerror)
        if problem and path in self._live():  # else it was replaced meanwhile
            raise StateDamaged(f"{path}: {problem}")
        self._seen[path] = (read, digest.intdigest())
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
