"""The `State` port on RocksDB (rocksdict, raw mode): one column family, its own log off, durable after a flush only.

The node's log is the only write-ahead log, so a crash takes the state back to the end of some batch: memtables are
flushed in order. Writes never wait inside the engine (`no_slowdown`; a stall was measured at seconds with the
interpreter lock held): `write` answers False, nothing was written, and the caller pushes back. Memory is bounded: a few
memtables, one block cache that also holds indexes and filters, few open files.

Law: what was flipped on disk is never an answer. Every block is checked when it is read, a scan tells damage from its end, and
from the first damage on every call raises StateDamaged. A node goes on without such a state: `set_aside`, and a new one.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rocksdict

from cluster.ports import StateDamaged, StorageFailed
from node.storage.disk import sync_names
from node.storage.failpoints import failpoint
from node.storage.identity import STATE, Identity, read_identity
from node.storage.manifest import problem_with_manifest
from node.storage.scrub import Scrub

IDENTITY_KEY = b"\0identity"
MEMTABLE_BYTES = 16 * 1024 * 1024
MEMTABLES = 4
CACHE_BYTES = 48 * 1024 * 1024
OPEN_FILES_MAX = 128
MANIFEST_BYTES = 256 * 1024  # a new one is begun above it; read whole at a start
STALLED = "Result incomplete"  # how rocksdict says that a write with `no_slowdown` would have had to wait
DAMAGE = ("Corruption", "No such file or directory")
"""How it says that a file is not what the engine wrote, or is gone."""


def engine_failure(path: Path, what: str, error: Exception) -> StorageFailed:
    """What an exception of rocksdict means, which raises plain ones."""
    damaged = isinstance(error, StateDamaged) or any(sign in str(error) for sign in DAMAGE)
    return (StateDamaged if damaged else StorageFailed)(f"{path}: {what}: {error}")


def _prepare(path: Path) -> None:
    """rocksdict 0.3.29 lets the options that it finds on disk count more than those of the program, whatever their bits."""
    for each in path.glob("OPTIONS-*"):
        each.unlink()
    problem = problem_with_manifest(path)
    if problem:
        raise StateDamaged(problem)


def set_aside(path: Path) -> Path:
    """Moves a damaged engine's directory out of the way, over an earlier one; where it is now. Durable when it returns."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        if path.exists():
            path.rename(aside)
        sync_names(path.parent)
    except OSError as error:
        raise StorageFailed(f"{path}: set aside: {error}") from error
    return aside


class RocksState:
    """The engine in the directory `path`, made if it is missing. ForeignFile when it belongs to another cluster or node or
    is of another format; StateDamaged; StorageFailed when it cannot be opened."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            sync_names(path.parent)
            _prepare(path)
            self._engine = rocksdict.Rdict(str(path), options=_options())
        except Exception as error:
            raise engine_failure(path, "open", error) from error
        self._write_options = rocksdict.WriteOptions()
        self._write_options.disable_wal = True
        self._write_options.no_slowdown = True
        self._thread = ThreadPoolExecutor(1, "state-flush")
        self._scrub = Scrub(path, self._engine, self._in_thread)
        self._failure = (
            ""  # a text and no exception, whose traceback would keep cursors alive, and so the engine's lock
        )
        self._failed_as: type[StorageFailed] = StorageFailed
        self._put_off: list[tuple[bytes, bytes]] = []
        self._open = True
        try:
            self._claim(identity)
        except BaseException:
            self.close()
            raise

    def _claim(self, identity: Identity) -> None:
        """Reads whose state this is, or marks a new one, durably before anything else is in it."""
        found = self.get(IDENTITY_KEY)
        if found is not None:
            read_identity(STATE, found, str(self._path), identity)
            return
        if next(self.scan(b"", b"\xff" * 8), None) is not None:
            raise StorageFailed(f"{self._path}: holds data but not whose")
        self.write({IDENTITY_KEY: identity.encode(STATE)})
        try:
            self._engine.flush(True)
        except Exception as error:
            raise self._failed("flush", error) from error

    def get(self, key: bytes) -> bytes | None:
        self._check()
        try:
            value: bytes | None = self._engine.get(key)
        except Exception as error:
            raise self._failed("read", error) from error
        return value

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """As of the call, whatever is written while the pairs are taken."""
        self._check()
        cursor = self._engine.iter()
        return self._back(cursor, start, end) if reverse else self._forth(cursor, start, end)

    def _forth(self, cursor: rocksdict.RdictIter, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """rocksdict 0.3.29: a cursor that met damage looks like one at the end, and only its status tells (`items` never
        does). The bounds of ReadOptions are not to be used: their memory goes while the iterator lives."""
        try:
            key_of, value_of, forward = cursor.key, cursor.value, cursor.next
            cursor.seek(start)
            while (key := key_of()) is not None and key < end:
                yield key, value_of()
                forward()
            cursor.status()
        except Exception as error:
            raise self._failed("scan", error) from error

    def _back(self, cursor: rocksdict.RdictIter, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            cursor.seek_for_prev(end)
            while (key := cursor.key()) is not None and key >= start:
                if key != end:
                    yield key, cursor.value()
                cursor.prev()
            cursor.status()
        except Exception as error:
            raise self._failed("scan", error) from error

    def write(self, batch: Mapping[bytes, bytes | None]) -> bool:
        self._check()
        failpoint("state.write")
        rows = self._new_batch()
        put = rows.put
        for key, value in batch.items():
            if value is None:
                rows.delete(key)
            else:
                put(key, value)
        if not self._write(rows):
            return False
        failpoint("state.written")
        return True

    def _new_batch(self) -> rocksdict.WriteBatch:
        """A batch that begins with the range deletes that a stall put off, so that nothing overtakes them."""
        rows = rocksdict.WriteBatch(raw_mode=True)
        for start, end in self._put_off:
            rows.delete_range(start, end)
        return rows

    def _write(self, rows: rocksdict.WriteBatch) -> bool:
        try:
            self._engine.write(rows, self._write_options)
        except Exception as error:
            if STALLED in str(error):
                return False
            raise self._failed("write", error) from error
        self._put_off.clear()
        return True

    def delete_range(self, start: bytes, end: bytes) -> None:
        """At once, or while the engine stalls together with the next batch, before anything in it."""
        self._check()
        if start < end:
            self._put_off.append((start, end))
            self._write(self._new_batch())

    async def flush(self) -> None:
        self._check()
        failpoint("flush.before")
        try:
            await self._in_thread(self._engine.flush, True)
        except Exception as error:
            raise self._failed("flush", error) from error
        failpoint("flush.after")

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def scrub(self, bytes_per_s: int) -> int:
        self._check()
        try:
            return await self._scrub.run(bytes_per_s)
        except Exception as error:
            raise self._failed("scrub", error) from error

    def snapshot(self) -> RocksSnapshot:
        self._check()
        return RocksSnapshot(self, self._engine.iter())

    def close(self) -> None:
        """Waits for a flush that runs; does not flush, since what counts is in the log."""
        if self._open:
            self._open = False
            self._thread.shutdown(wait=True)
            self._failure = self._failure or f"{self._path}: closed"
            self._engine.close()

    def _check(self) -> None:
        if self._failure:
            raise self._failed_as(self._failure)

    def _failed(self, what: str, error: Exception) -> StorageFailed:
        """From the first failure on nothing is believed any more."""
        if not self._failure:
            first = engine_failure(self._path, what, error)
            self._failure, self._failed_as = str(first), type(first)
        return self._failed_as(self._failure)


class RocksSnapshot:
    """One iterator, which sees the engine as it was when it was made. (rocksdict's own snapshots, at 0.3.29, freeze single
    reads but not scans.) One scan at a time. Closed before the engine is: a live iterator keeps the engine's lock."""

    def __init__(self, state: RocksState, cursor: rocksdict.RdictIter) -> None:
        self._state = state
        self._cursor: rocksdict.RdictIter | None = cursor

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._state._check()
        assert self._cursor is not None, "the snapshot is closed"
        yield from self._state._forth(self._cursor, start, end)

    def close(self) -> None:
        self._cursor = None


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_write_buffer_number(MEMTABLES)
    options.set_level_zero_file_num_compaction_trigger(8)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_max_background_jobs(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1024 * 1024)
    options.set_stats_dump_period_sec(0)
    options.set_paranoid_checks(True)
    options.set_max_manifest_file_size(MANIFEST_BYTES)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(CACHE_BYTES))
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_pin_top_level_index_and_filter(True)
    table.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)  # a whole filter is larger than a shard of the cache: read anew at every get
    table.set_bloom_filter(10, False)
    table.set_format_version(6)  # with a checksum over the footer, and blocks that know their place
    options.set_block_based_table_factory(table)
    return options
