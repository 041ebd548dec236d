"""Locks for programs without asyncio. The semantics and errors are those of `Lock`; a thread is an owner, as a task is there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from client.lock import Lock
from client.lock_arguments import PLAIN, How, Mode, milliseconds
from client.lock_held import Held
from client.lock_view import LockInfo
from client.results import Entry, TransactionResult
from cluster.errors import TenfoldError

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class SyncHeld:
    """See `Held`. The keep-alive goes on in the client's own thread; nothing interrupts a thread that has lost its lock, so look at
    `lost`, or write under the token."""

    def __init__(self, held: Held, run: Run) -> None:
        self._held, self._run = held, run
        self.tokens = held.tokens

    @property
    def token(self) -> int:
        return self._held.token

    @property
    def lost(self) -> bool:
        return self._held.lost.is_set()

    @property
    def remaining_s(self) -> float:
        async def remaining() -> float:
            return self._held.remaining_s

        left_s: float = self._run(remaining())
        return left_s

    def renew(self) -> None:
        self._run(self._held.renew())

    def release(self) -> bool:
        released: bool = self._run(self._held.release())
        return released

    def confirm(self, entries: Sequence[Entry], *, deadline_s: float | None = None) -> TransactionResult:
        result: TransactionResult = self._run(self._held.confirm(entries, deadline_s=deadline_s))
        return result


class SyncLock:
    """See `Lock`: each method waits for its result. `thread` tells which thread asks."""

    def __init__(self, lock: Lock, run: Run, thread: Callable[[], int]) -> None:
        self._lock, self._run, self._thread = lock, run, thread

    def acquire(
        self,
        names: str | Iterable[str],
        ttl_ms: int,
        wait_ms: int | None = 0,
        mode: Mode = "exclusive",
        *,
        how: How = PLAIN,
    ) -> SyncHeld:
        owner = self._lock.owners.of_thread(self._thread())
        how = how if mode == "exclusive" else how._replace(mode=mode)
        return SyncHeld(self._run(self._lock.acquire_for(owner, names, ttl_ms, wait_ms, how)), self._run)

    @contextmanager
    def hold(
        self,
        names: str | Iterable[str],
        *,
        ttl: float = 10.0,
        wait: float | None = None,
        mode: Mode = "exclusive",
        how: How = PLAIN,
    ) -> Iterator[SyncHeld]:
        """Seconds; `wait` None: as long as it takes."""
        wait_ms = None if wait is None else milliseconds(wait, "wait")
        held = self.acquire(names, milliseconds(ttl, "ttl"), wait_ms, mode, how=how)
        try:
            yield held
        finally:
            with suppress(TenfoldError):
                held.release()

    def release(self, held: SyncHeld) -> bool:
        return held.release()

    def check(self, name: str, *, deadline_s: float | None = None) -> LockInfo:
        info: LockInfo = self._run(self._lock.check(name, deadline_s=deadline_s))
        return info

    def list(self, prefix: str = "", *, deadline_s: float | None = None) -> list[LockInfo]:
        found: list[LockInfo] = self._run(self._lock.list(prefix, deadline_s=deadline_s))
        return found

    def force_release(self, name: str, token: int | None = None, *, deadline_s: float | None = None) -> bool:
        released: bool = self._run(self._lock.force_release(name, token, deadline_s=deadline_s))
        return released
