"""`kv load`: every record of a file becomes a key. A bounded number is in flight; what was acknowledged stays and is counted.

A bad line ends the load: nothing behind it is sent, what is under way is awaited. So do several batches in a row that fail, since a
client tries each until its deadline: the cluster is not there. After an interrupt what is under way has a second to be answered; the
rest is unknown. Where a key comes twice, the later record is sent after the earlier one was answered, so that the last one wins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from client.cli.output import error_name
from client.cli.progress import Progress
from client.cli.records import BadLine, Record, reader
from client.client import Client
from client.results import Put
from cluster.errors import TenfoldError, invalid
from cluster.limits import DEFAULT, KIB

BATCH_RECORDS = 256
BATCH_BYTES = 256 * KIB
BATCHES_IN_FLIGHT = 12
BATCHES_FAILED_MAX = 4  # in a row, with failures in each
INTERRUPT_GRACE_S = 1.0  # for the answers to what is under way


class Source(NamedTuple):
    """What to load. The keys of `path`'s records are `prefix`, a slash and a number or a field; without prefix, no slash."""

    path: Path
    prefix: str
    form: str
    key_field: str | None

    def records(self) -> Iterator[Record]:
        """Opens the file at the first record. InvalidArgument if the options make no sense or there is no such file."""
        read = reader(self.form, self.key_field)
        if not self.path.is_file():
            raise invalid("file", f"{self.path} is no file")
        try:
            with self.path.open("rb"):
                pass
        except OSError as error:
            raise invalid("file", f"{self.path}: {error.strerror}") from None
        return read(self.path, key_prefix(self.prefix), DEFAULT)


def key_prefix(prefix: str) -> bytes:
    """P/ for P; nothing for an empty one."""
    raw = prefix.encode(errors="surrogateescape")
    return raw + b"/" if raw else b""


@dataclass(slots=True)
class Loaded:
    """How a load ended. `first_bad` is the lowest line that is malformed, failed or unknown, with what was wrong; `bytes` are those
    of the batches that were acknowledged as a whole; `stopped` is the last line sent when it gave up."""

    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    malformed: int = 0
    bytes: int = 0
    seconds: float = 0.0
    first_bad: tuple[int, str] | None = None
    stopped: int | None = None
    interrupted: bool = False

    def bad(self, line: int, problem: str) -> None:
        if self.first_bad is None or line < self.first_bad[0]:
            self.first_bad = (line, problem)

    def document(self, source: Source) -> dict[str, object]:
        bad = {"line": self.first_bad[0], "error": self.first_bad[1]} if self.first_bad else None
        return {
            "file": str(source.path),
            "prefix": source.prefix,
            "acknowledged": self.acknowledged,
            "failed": self.failed,
            "unknown": self.unknown,
            "malformed": self.malformed,
            "interrupted": self.interrupted,
            "stopped_behind_line": self.stopped,
            "first_bad_line": bad,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        rate = self.acknowledged / max(self.seconds, 1e-9)
        stopped = f", stopped behind line {self.stopped}" if self.stopped is not None else ""
        return (
            f"{self.acknowledged} acknowledged, {self.failed} failed, {self.unknown} unknown, "
            f"{self.malformed} malformed{stopped} ({self.seconds:.1f} s, {rate:.0f}/s)"
        )


@dataclass(slots=True)
class _Batch:
    start: int  # where its first record begins in the file
    records: list[Record] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    size: int = 0

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.keys.add(record.key)
        self.size += len(record.key) + len(record.value)

    @property
    def full(self) -> bool:
        return len(self.records) >= BATCH_RECORDS or self.size >= BATCH_BYTES


class Loader:
    """Counts in `loaded`, which is true also when `run` ends by an exception."""

    def __init__(self, client: Client, source: Source, deadline_s: float, loaded: Loaded) -> None:
        self._client, self._source, self._deadline_s = client, source, deadline_s
        self._failed_in_a_row = 0
        self._flying: deque[tuple[asyncio.Task[None], _Batch]] = deque()
        self._loaded = loaded

    async def run(self) -> None:
        """If it is cancelled, what is in flight and not answered soon counts as unknown."""
        loaded = self._loaded
        with Progress(f"load {self._source.path.name}", self._source.path.stat().st_size) as progress:
            try:
                for batch in self._batches():
                    await self._room(batch)
                    if self._failed_in_a_row >= BATCHES_FAILED_MAX:
                        loaded.stopped = batch.records[0].line - 1
                        break
                    await self._send(batch)
                    progress.tell(loaded.bytes, loaded.acknowledged)
                while self._flying:
                    await self._landed()
                    progress.tell(loaded.bytes, loaded.acknowledged)
            except asyncio.CancelledError:
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERRUPT_GRACE_S):
                        while self._flying:
                            await self._landed()
                raise
            finally:
                for task, batch in self._flying:
                    if not task.done():
                        task.cancel()
                        loaded.unknown += len(batch.records)
                loaded.seconds = progress.seconds

    async def _landed(self) -> None:
        """Waits for the oldest batch. It stays among the flying until then, or an interrupt would not count it."""
        await asyncio.shield(self._flying[0][0])
        self._flying.popleft()

    def _batches(self) -> Iterator[_Batch]:
        """Bounded in records and bytes; no key twice in one."""
        batch = _Batch(0)
        try:
            for record in self._source.records():
                if batch.full or record.key in batch.keys:
                    yield batch
                    batch = _Batch(batch.records[-1].end)
                batch.add(record)
        except BadLine as bad:
            self._loaded.malformed = 1
            self._loaded.bad(bad.line, bad.problem)
        if batch.records:
            yield batch

    async def _room(self, batch: _Batch) -> None:
        """Waits until `batch` may be sent."""
        while len(self._flying) >= BATCHES_IN_FLIGHT:
            await self._landed()
        if self._source.form != "lines":  # line numbers are unique
            for task, earlier in list(self._flying):
                if not earlier.keys.isdisjoint(batch.keys):
                    await asyncio.shield(task)

    async def _send(self, batch: _Batch) -> None:
        self._flying.append((asyncio.create_task(self._put(batch)), batch))
        await asyncio.sleep(0)

    async def _put(self, batch: _Batch) -> None:
        puts = [Put(record.key, record.value) for record in batch.records]
        try:
            errors = [result.error for result in await self._client.kv.batch(puts, deadline_s=self._deadline_s)]
        except TenfoldError as refused:
            errors = [refused] * len(puts)
        loaded = self._loaded
        if any(errors):
            self._failed_in_a_row += 1
        else:
            self._failed_in_a_row = 0
            loaded.bytes += batch.records[-1].end - batch.start
        for record, error in zip(batch.records, errors, strict=True):
            if error is None:
                loaded.acknowledged += 1
                continue
            if error.definite:
                loaded.failed += 1
            else:
                loaded.unknown += 1
            loaded.bad(record.line, f"{error_name(error.code)}: {error.message}")
