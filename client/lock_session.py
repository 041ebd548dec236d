"""A lease shared by many locks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self

from client.lock_arguments import PLAIN, How, Mode
from client.lock_attempts import Attempts
from client.lock_held import Held

Obtain = Callable[[Attempts, "str | Iterable[str]", "int | None", How], Awaitable[Held]]


class LockSession:
    """A lease shared by many locks. `lost` is the reason, empty while it lives. `async with` it, or `end` it: what it still holds is
    given up then."""

    def __init__(self, obtain: Obtain, attempts: Attempts, on_lost: Callable[[str], None] | None) -> None:
        self._obtain, self._attempts, self._lease = obtain, attempts, attempts.lease
        self._on_lost = on_lost
        if on_lost is not None:
            self._lease.on_lost[on_lost] = None

    @property
    def lost(self) -> str:
        return self._lease.lost

    @property
    def remaining_s(self) -> float:
        """For how long what it holds is surely held: of all shards the shortest; 0 where nothing is held."""
        return self._lease.remaining_s

    async def acquire(
        self, names: str | Iterable[str], wait_ms: int | None = 0, mode: Mode = "exclusive", *, how: How = PLAIN
    ) -> Held:
        """As `Lock.acquire`, under this lease. LeaseLost."""
        how = how if mode == "exclusive" else how._replace(mode=mode)
        return await self._obtain(self._attempts, names, wait_ms, how)

    async def renew(self) -> None:
        """At once, in all shards. LeaseLost."""
        await self._lease.renew()

    async def end(self) -> None:
        """May be called twice."""
        if self._on_lost is not None:
            self._lease.on_lost.pop(self._on_lost, None)
        await self._lease.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()
