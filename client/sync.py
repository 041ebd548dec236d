"""The client for programs without asyncio: the async client on the loop of a thread of its own.

Calls from many threads are joined as those of many tasks are. The semantics and errors are those of `Client` and `Kv`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from client.client import Client
from client.fencing import Fenced
from client.kv import Consistency, Kv
from client.results import BatchResult, Compare, Entry, Key, KvItem, KvValue, Page, TransactionResult, Value, WriteEntry
from client.scan import Scan
from client.sync_lock import SyncLock
from client.watch import Watch, WatchEvent
from cluster.limits import DEFAULT

T = TypeVar("T")


class _Loop:
    """An event loop in a thread, for as long as its owner wants it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tenfold-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end. An interrupt of the caller cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncClient:
    """`with SyncClient(["127.0.0.1:7400"]) as client: client.kv.put("key", "value")`. Usable from many threads."""

    def __init__(
        self, addresses: Sequence[str], *, deadline_s: float = DEFAULT.deadline_ms_default / 1000, principal: str = ""
    ) -> None:
        self._make: Callable[[], Client] = lambda: Client(addresses, deadline_s=deadline_s, principal=principal)
        self._loop: _Loop | None = None
        self._client: Client | None = None

    @classmethod
    def from_directory(cls, directory: str | Path = ".tenfold", *, deadline_s: float | None = None) -> SyncClient:
        made = cls([])
        made._make = lambda: Client.from_directory(directory, deadline_s=deadline_s)
        return made

    def __enter__(self) -> Self:
        self._loop = _Loop()
        try:
            self._client = self._loop.run(self._start())
        except BaseException:
            self._loop.stop()
            raise
        self.kv = SyncKv(self._client.kv, self._loop)
        self.lock = SyncLock(self._client.lock, self._loop.run, threading.get_ident)
        return self

    async def _start(self) -> Client:
        client = self._make()
        await client.start()
        return client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        if self._loop is not None and self._client is not None:
            self._loop.run(self._client.close())
            self._loop.stop()
            self._loop = self._client = None


class SyncKv:
    """See `Kv`: each method waits for its result."""

    def __init__(self, kv: Kv, loop: _Loop) -> None:
        self._kv, self._run = kv, loop.run

    def put(
        self,
        key: Key,
        value: Value,
        *,
        ttl_ms: int | None = None,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> int:
        return self._run(self._kv.put(key, value, ttl_ms=ttl_ms, if_fence=if_fence, deadline_s=deadline_s))

    def get(
        self, key: Key, *, consistency: Consistency = "linearizable", deadline_s: float | None = None
    ) -> KvValue | None:
        return self._run(self._kv.get(key, consistency=consistency, deadline_s=deadline_s))

    def get_many(
        self, keys: Iterable[Key], *, consistency: Consistency = "linearizable", deadline_s: float | None = None
    ) -> list[KvValue | None]:
        return self._run(self._kv.get_many(keys, consistency=consistency, deadline_s=deadline_s))

    def delete(self, key: Key, *, if_fence: Fenced | None = None, deadline_s: float | None = None) -> bool:
        return self._run(self._kv.delete(key, if_fence=if_fence, deadline_s=deadline_s))

    def increment(
        self,
        key: Key,
        delta: int = 1,
        *,
        ttl_ms: int | None = None,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> int:
        work = self._kv.increment(key, delta, ttl_ms=ttl_ms, if_fence=if_fence, deadline_s=deadline_s)
        return self._run(work)

    def compare_and_set(
        self,
        key: Key,
        value: Value,
        *,
        version: int,
        ttl_ms: int | None = None,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> int:
        work = self._kv.compare_and_set(
            key, value, version=version, ttl_ms=ttl_ms, if_fence=if_fence, deadline_s=deadline_s
        )
        return self._run(work)

    def compare_and_delete(
        self, key: Key, *, version: int, if_fence: Fenced | None = None, deadline_s: float | None = None
    ) -> bool:
        work = self._kv.compare_and_delete(key, version=version, if_fence=if_fence, deadline_s=deadline_s)
        return self._run(work)

    def batch(self, entries: Sequence[WriteEntry], *, deadline_s: float | None = None) -> list[BatchResult]:
        return self._run(self._kv.batch(entries, deadline_s=deadline_s))

    def transaction(
        self,
        compares: Sequence[Compare],
        then: Sequence[Entry],
        otherwise: Sequence[Entry] = (),
        *,
        if_fence: Fenced | None = None,
        deadline_s: float | None = None,
    ) -> TransactionResult:
        work = self._kv.transaction(compares, then, otherwise, if_fence=if_fence, deadline_s=deadline_s)
        return self._run(work)

    def count(self, prefix: Key = b"", *, start: Key = b"", end: Key = b"", deadline_s: float | None = None) -> int:
        return self._run(self._kv.count(prefix, start=start, end=end, deadline_s=deadline_s))

    def scan(
        self,
        *,
        prefix: Key = b"",
        start: Key = b"",
        end: Key = b"",
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        cursor: str | None = None,
        consistency: Consistency = "linearizable",
        deadline_s: float | None = None,
    ) -> SyncScan:
        async def made() -> Scan:
            return self._kv.scan(
                prefix=prefix,
                start=start,
                end=end,
                limit=limit,
                reverse=reverse,
                keys_only=keys_only,
                cursor=cursor,
                consistency=consistency,
                deadline_s=deadline_s,
            )

        return SyncScan(self._run(made()), self._run)

    def watch(self, key: Key | None = None, *, prefix: Key | None = None, token: str | None = None) -> SyncWatch:
        async def made() -> Watch:
            return self._kv.watch(key, prefix=prefix, token=token)

        return SyncWatch(self._run(made()), self._run)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


class _Items(Generic[T]):
    """An async iterator, waited for item by item."""

    def __init__(self, items: AsyncIterator[T], run: Run) -> None:
        self._items, self._run = items, run

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        ended = object()
        found = self._run(self._next(ended))
        if found is ended:
            raise StopIteration
        item: T = found
        return item

    async def _next(self, ended: object) -> object:
        return await anext(self._items, ended)


class SyncScan:
    """See `Scan`."""

    def __init__(self, scan: Scan, run: Run) -> None:
        self._scan, self._run = scan, run

    def __iter__(self) -> Iterator[KvItem]:
        """By pages, so that an item costs no change of thread."""
        while True:
            page = self.page()
            yield from page.items
            if page.cursor is None or not page.items:
                return

    def page(self, items: int = 1000) -> Page:
        page: Page = self._run(self._scan.page(items))
        return page

    @property
    def cursor(self) -> str | None:
        return self._scan.cursor


class SyncWatch:
    """See `Watch`: `with` it, then iterate."""

    def __init__(self, watch: Watch, run: Run) -> None:
        self._watch, self._run = watch, run

    def __enter__(self) -> Self:
        self._run(self._watch.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._watch.stop())

    def __iter__(self) -> Iterator[WatchEvent]:
        return _Items(aiter(self._watch), self._run)

    @property
    def token(self) -> str:
        return self._watch.token
