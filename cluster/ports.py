"""The seams. The process entry passes the real ones, tests and the simulator pass twins; everything between is the same code.

Synchronous methods return at once as far as the loop is concerned (a write to the page cache); what may take long is a
coroutine. A port of a crashed incarnation has no effect any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class StorageFailed(Exception):
    """A write or fsync failed. It is never retried and believed: the node stops (the fsync-retry trap)."""


class DiskFull(StorageFailed):
    """No space left. What was written of the round is undone or ignored at recovery."""


class StateDamaged(StorageFailed):
    """The state engine found that what it once wrote is no longer what is there. The log is not touched by that."""


class File(Protocol):
    """An append-only file, or one opened for reading."""

    def append(self, pieces: list[bytes]) -> int:
        """Appends all pieces by one gathered write; the new size in bytes. StorageFailed, DiskFull."""

    async def sync(self) -> None:
        """Data durable when it returns (fdatasync). StorageFailed."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None:
        """Cuts the file; durable only after `sync`."""

    def close(self) -> None: ...


class Disk(Protocol):
    """One directory tree. Paths are relative, with `/`. A name is durable only after `sync_directory` of its parent."""

    def create(self, path: str) -> File:
        """A new empty file for appending; FileExistsError."""

    def open(self, path: str, *, writable: bool = False) -> File: ...

    def exists(self, path: str) -> bool: ...

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; [] where there is none."""

    def make_directory(self, path: str) -> None:
        """With parents; each made name is durable after this returns."""

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...


class StateSnapshot(Protocol):
    """A frozen view of the state."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]: ...

    def close(self) -> None: ...


class State(Protocol):
    """The state engine of a node: an ordered byte-key map, written in atomic batches, durable after `flush` only.
    StateDamaged, from then on for ever, when it finds itself corrupt."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end in (reverse) key order."""

    def write(self, batch: Mapping[bytes, bytes | None]) -> bool:
        """One atomic batch; None deletes. False when the engine is stalled and nothing was written: try later."""

    def delete_range(self, start: bytes, end: bytes) -> None: ...

    async def flush(self) -> None:
        """Everything written before the call is durable when it returns. A crash keeps a prefix of the batches."""

    async def scrub(self, bytes_per_s: int) -> int:
        """Reads all that is durable once, slowly, so that damage is found before it is needed; the bytes read."""

    def snapshot(self) -> StateSnapshot: ...

    def close(self) -> None: ...


class ReadView(Protocol):
    """What a machine reads of its own keys (one shard, one capability)."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """start <= key < end; an empty `end` means to the last key."""


class View(ReadView, Protocol):
    """The same with writes, which later reads see at once and which end in one batch with the applied index."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds; never goes back."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970; may jump. For users' dates only, never for a decision."""


class Random(Protocol):
    """The part of random.Random that pure code may use."""

    def randrange(self, start: int, stop: int, /) -> int: ...

    def random(self) -> float: ...


class Spawn(Protocol):
    """Starts background tasks, keeps a reference, reports a task that died of an unexpected exception."""

    def __call__(self, work: Coroutine[Any, Any, None], name: str) -> Any: ...


class Stream(Protocol):
    """A bidirectional stream of messages."""

    async def write(self, message: Any) -> None: ...

    async def read(self) -> Any | None:
        """The next message; None at the end. ChannelBroken."""

    def cancel(self) -> None: ...


class ChannelBroken(Exception):
    """The connection failed; whether the peer acted on what was sent is unknown. `sent` is False when the request
    surely never left (the connection was never made)."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class Channel(Protocol):
    """A long-lived connection to one address, reconnecting by itself. Methods are named as in the descriptors:
    service "Node", method "Call"; requests and replies are the generated messages."""

    async def call(self, service: str, method: str, request: Any, *, timeout_s: float) -> Any:
        """One unary call. ChannelBroken; TimeoutError."""

    def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        """A unary call answered by a stream, without a deadline. ChannelBroken."""

    def stream(self, service: str, method: str) -> Stream: ...

    async def close(self) -> None: ...


Dial = Callable[[str], Channel]
"""Opens a channel to an address (host:port) without waiting for it."""

Handlers = Iterable[tuple[str, object]]
"""(service name, plain object with one async method per RPC, in snake_case)."""
