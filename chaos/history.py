"""The history of a run: every invocation, every outcome and every fault, as JSON Lines, in the order it happened.

The first line is the header; each further line is one event. An operation is an `invoke` and at most one completion of
the same process: `ok` (took effect, here is the answer), `fail` (surely did not take effect) or `info` (unknown: it may
take effect at any later time, or never). A process whose operation ended in `info` is used no more; the client goes on
under a new process. Faults are events of the process "nemesis", journalled before they are injected; what a shard's change feed
told is of the process "feed". Times are
nanoseconds of one monotonic clock since the start of the run, so the order of lines is the order of events. After
Jepsen's history format; what is read is validated, and a malformed line is named by its number.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import msgspec

MAGIC = "tenfold"
FORMAT = 1
NEMESIS = "nemesis"
FEED = "feed"
"""Tells what a shard's change feed told, in its order: the committed side of a history of locks."""
MISMATCH = "VERSION_MISMATCH"
"""The error of a compare-and-set that found another version: a definite answer, and `version` is what it found."""

EventType = Literal["invoke", "ok", "fail", "info"]

_BUFFER_BYTES_MAX = 256 * 1024


class HistoryError(ValueError):
    """A history that cannot be judged; the message names the line."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


class Header(msgspec.Struct):
    """What the run was: enough to understand it, and to run it again."""

    history: str
    format: int
    seed: int
    options: dict[str, Any] = {}
    cluster: dict[str, Any] = {}


class LockFacts(msgspec.Struct, omit_defaults=True, gc=False):
    """What an event says of a lock, besides. `index` is the log index of what it tells, `queued` the one at which the attempt began
    to wait (0: it did not, or nobody knows). `until_ns` is until when the lease is believed to last, by the clock of the history. `cycle` is what was told with a deadlock."""

    name: str = ""
    lease: int = 0
    attempt: int = 0
    token: int = 0
    mode: str = ""
    capacity: int = 0
    permits: int = 0
    ttl_ms: int = 0
    wait_ms: int = 0
    delay_ms: int = 0
    index: int = 0
    queued: int = 0
    until_ns: int = 0
    cycle: str = ""
    reentrant: bool = False


class Event(msgspec.Struct, omit_defaults=True, gc=False):
    """One line. `version` is what a completion tells: of the write, of the value read (0: absent), or found on a
    mismatch. `expected` is the version a compare-and-set demands. `final` marks the reads after healing."""

    index: int
    time: int
    process: int | str
    type: EventType
    f: str
    key: str | None = None
    value: str | None = None
    version: int | None = None
    expected: int | None = None
    found: bool | None = None
    error: str | None = None
    node: str | None = None
    shard: int | None = None
    final: bool = False
    note: str | None = None
    lock: LockFacts | None = None


class Operation(msgspec.Struct, gc=False):
    """An invocation with its completion. `completed` is None where none was ever seen; such an operation is `info`."""

    process: int
    f: str
    key: str
    type: Literal["ok", "fail", "info"]
    invoked: int
    completed: int | None
    invoked_ns: int
    completed_ns: int | None
    value: str | None = None
    version: int | None = None
    expected: int | None = None
    found: bool | None = None
    error: str | None = None
    shard: int | None = None
    final: bool = False
    asked: LockFacts | None = None
    told: LockFacts | None = None

    @property
    def writes(self) -> bool:
        return self.f != "get"

    @property
    def mismatch(self) -> bool:
        return self.type == "fail" and self.f == "cas" and self.error == MISMATCH


class History(msgspec.Struct):
    header: Header
    operations: list[Operation]
    faults: list[Event]
    """Events of the nemesis, in order."""
    end_ns: int
    """Time of the last event."""
    feed: list[Event] = []
    """What change feeds told, in order."""


class Recorder:
    """Writes a history as it happens; buffered, and flushed at each fault so that no fault goes unrecorded."""

    def __init__(
        self,
        file: Path | BinaryIO,
        header: Header,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        start: int | None = None,
        buffered: bool = True,
    ) -> None:
        """Into a new file at a path, or into one that is open. `start`: when the run began, by the clock; now, if it is not given.
        A process that may be killed writes without a buffer."""
        self._file: BinaryIO = file.open("xb") if isinstance(file, Path) else file
        self._encoder = msgspec.json.Encoder()
        self._clock = clock
        self._start = clock() if start is None else start
        self._bytes_max = _BUFFER_BYTES_MAX if buffered else 0
        self._index = 0
        self._buffer = bytearray(self._encoder.encode(header) + b"\n")
        self.flush()

    def now_ns(self) -> int:
        """Nanoseconds since the start of the run."""
        return self._clock() - self._start

    def record(self, process: int | str, type: EventType, f: str, **fields: Any) -> Event:
        """Appends one event, stamped now. Fields as in `Event`."""
        event = Event(self._index, self.now_ns(), process, type, f, **fields)
        self._index += 1
        self._encoder.encode_into(event, self._buffer, len(self._buffer))
        self._buffer += b"\n"
        if len(self._buffer) > self._bytes_max:
            self.flush()
        return event

    def fault(self, type: EventType, f: str, **fields: Any) -> Event:
        """An event of the nemesis; it is with the operating system when this returns."""
        event = self.record(NEMESIS, type, f, **fields)
        self.flush()
        return event

    def flush(self) -> None:
        self._file.write(self._buffer)
        self._file.flush()
        self._buffer.clear()

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def header(seed: int, options: Mapping[str, Any], cluster: Mapping[str, Any]) -> Header:
    return Header(MAGIC, FORMAT, seed, dict(options), dict(cluster))


def merge(header: Header, parts: Iterable[Path], into: Path) -> None:
    """One history from those that several processes wrote by one clock since one start. The last line of one that was killed may be
    torn: it was never sent what it was about."""
    decoder, encoder = msgspec.json.Decoder(Event), msgspec.json.Encoder()

    def events(part: Path) -> Iterator[Event]:
        lines = part.read_bytes().split(b"\n")
        return (decoder.decode(line) for line in lines[1:-1])  # behind the last line feed is nothing, or what is torn

    with into.open("xb") as file:
        file.write(encoder.encode(header) + b"\n")
        ordered = heapq.merge(*map(events, parts), key=lambda event: event.time)
        for index, event in enumerate(ordered):
            event.index = index
            file.write(encoder.encode(event) + b"\n")


def read(path: Path) -> History:
    """The validated history in the file. HistoryError names the first bad line; OSError where there is no such file."""
    return parse(path.read_bytes().split(b"\n"))


def parse(lines: Iterable[bytes]) -> History:
    """The validated history in these lines (without their line feeds)."""
    pairing = _Pairing()
    decoder = msgspec.json.Decoder(Event)
    first: Header | None = None
    torn = 0
    for number, line in enumerate(lines, 1):
        if torn:
            raise HistoryError(torn, "empty line")
        if not line:
            torn = number  # allowed once, at the very end: the line feed of the last line
        elif first is None:
            first = _parse_header(line)
        else:
            try:
                event = decoder.decode(line)
            except msgspec.MsgspecError as error:
                intact = f"the {number - 2} events before it are intact"
                raise HistoryError(number, f"not an event: {error}; {intact}") from None
            pairing.add(event, number)
    if first is None:
        raise HistoryError(1, "the header is missing")
    return History(first, pairing.finish(), pairing.faults, pairing.last_ns, pairing.feed)


def _parse_header(line: bytes) -> Header:
    try:
        found = msgspec.json.decode(line, type=Header)
    except msgspec.MsgspecError as error:
        raise HistoryError(1, f"not the header of a history: {error}") from None
    if found.history != MAGIC:
        raise HistoryError(1, f"not a history of tenfold, but of {found.history!r}")
    if found.format != FORMAT:
        raise HistoryError(1, f"format {found.format} is not format {FORMAT}, the only one this version reads")
    return found


class _Pairing:
    """Joins invocations with completions, and holds the rules of the format."""

    def __init__(self) -> None:
        self.faults: list[Event] = []
        self.feed: list[Event] = []
        self.last_ns = 0
        self._operations: list[Operation] = []
        self._open: dict[int, tuple[Event, int]] = {}
        self._retired: set[int] = set()
        self._index = 0

    def add(self, event: Event, line: int) -> None:
        if event.index != self._index:
            raise HistoryError(line, f"index {event.index} where {self._index} is due")
        if event.time < self.last_ns:
            raise HistoryError(line, "time goes backwards")
        self._index += 1
        self.last_ns = event.time
        if event.process == NEMESIS:
            self.faults.append(event)
        elif event.process == FEED:
            self.feed.append(event)
        elif not isinstance(event.process, int):
            raise HistoryError(line, f"process {event.process!r} is neither a number nor {NEMESIS!r}, {FEED!r}")
        elif event.type == "invoke":
            self._invoke(event, event.process, line)
        else:
            self._complete(event, event.process, line)

    def _invoke(self, event: Event, process: int, line: int) -> None:
        if process in self._open:
            raise HistoryError(
                line, f"process {process} invokes while its operation of line {self._open[process][1]} is open"
            )
        if process in self._retired:
            raise HistoryError(line, f"process {process} goes on after an unknown outcome")
        if event.key is None:
            raise HistoryError(line, "an invocation without a key")
        self._open[process] = (event, line)

    def _complete(self, event: Event, process: int, line: int) -> None:
        if process not in self._open:
            raise HistoryError(line, f"process {process} completes what it never invoked")
        invoke, _ = self._open.pop(process)
        if (event.f, event.key) != (invoke.f, invoke.key):
            raise HistoryError(
                line, f"process {process} invoked {invoke.f} of {invoke.key!r}, not {event.f} of {event.key!r}"
            )
        if event.type == "info":
            self._retired.add(process)
        self._operations.append(_join(invoke, event))

    def finish(self) -> list[Operation]:
        """All operations by invocation; those still open are unknown."""
        self._operations.extend(_join(invoke, None) for invoke, _ in self._open.values())
        self._operations.sort(key=lambda operation: operation.invoked)
        return self._operations


def _join(invoke: Event, done: Event | None) -> Operation:
    assert isinstance(invoke.process, int) and invoke.key is not None
    operation = Operation(
        invoke.process, invoke.f, invoke.key, "info", invoke.index, None, invoke.time, None, invoke.value, None,
        invoke.expected, None, None, invoke.shard, invoke.final, invoke.lock,
    )  # fmt: skip
    if done is not None:
        assert done.type != "invoke"
        operation.type, operation.completed, operation.completed_ns = done.type, done.index, done.time
        operation.version, operation.found, operation.error = done.version, done.found, done.error
        operation.told = done.lock
        if invoke.f == "get":
            operation.value = done.value
    return operation
