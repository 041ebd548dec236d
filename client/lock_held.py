"""What is held: its tokens, how long it may be relied on, and how it ends.

Law: `lost` is set once and for good, at the latest when `remaining_s` has come to nothing. A token is what protects data from a
holder that was stopped in between; the event is only the news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType

from client.kv import Kv
from client.lock_attempts import Attempts, Claim
from client.results import Entry, TransactionResult
from client.surroundings import Surroundings
from cluster.errors import Code, TenfoldError, invalid
from proto.gen.entry_pb2 import Fence

OnLost = Callable[["Held"], Awaitable[None] | None]


class Held:
    """One name or a group. `lost`: somebody else may hold it from now on; `lost_reason` says why. `owner` is who holds it."""

    def __init__(
        self, around: Surroundings, kv: Kv, attempts: Attempts, claims: list[Claim], owner: str, *, own: bool
    ) -> None:
        self.owner = owner
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.tokens = {claim.name: claim.token for claim in sorted(claims)}
        self._around, self._kv, self._attempts, self._claims, self._own = around, kv, attempts, claims, own
        self._over = False
        self._on_lost: list[OnLost] = []
        self._lease = attempts.lease
        self._lease.on_lost[self._lose] = None
        self._lease.hold(1)
        for claim in claims:
            claim.expected.on_lost = self._lose

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self.tokens)

    @property
    def name(self) -> str:
        """Of a single lock."""
        return self._single().name

    @property
    def token(self) -> int:
        """The fencing token of a single lock; a group has `tokens`."""
        return self._single().token

    @property
    def lease(self) -> int:
        return self._lease.id

    @property
    def attempts(self) -> dict[str, int]:
        """With the lease's id, who holds each name, as the shard knows it."""
        return {claim.name: claim.attempt for claim in self._claims}

    @property
    def remaining_s(self) -> float:
        """For how long it is surely held, if nothing is renewed any more: of all shards the shortest. 0 once it is over."""
        return 0.0 if self._over or self.lost.is_set() else self._lease.remaining_s

    def _single(self) -> Claim:
        if len(self._claims) != 1:
            raise invalid(
                "name", f"{len(self._claims)} names are held together, each with a token of its own: see `tokens`"
            )
        return self._claims[0]

    # -- how it ends ---------------------------------------------------------------------------------------------------

    def when_lost(self, told: OnLost) -> None:
        """Called once, with this; what it returns, if awaitable, is awaited in the background."""
        self._on_lost.append(told)
        if self.lost.is_set():
            self._tell(told)

    def _lose(self, reason: str) -> None:
        if self._over or self.lost.is_set():
            return
        self.lost_reason = reason
        self.lost.set()
        for told in self._on_lost:
            self._tell(told)

    def _tell(self, told: OnLost) -> None:
        doing = told(self)
        if doing is not None:
            self._around.tasks(_done(doing), "a lost lock is told")

    async def renew(self) -> None:
        """At once, beside the keep-alive. LeaseLost."""
        if self._over or self.lost.is_set():
            raise TenfoldError(Code.LEASE_LOST, self.lost_reason or "it was released")
        await self._lease.renew()

    async def release(self) -> bool:
        """Whether there was something to give up; not a second time, nor after it was lost. Names of a group are given up in
        the reverse of the order they were taken in. NotHolder: somebody else holds it by now. After an indefinite error the
        release goes on in the background."""
        if not self._close():
            return False
        released, failed = False, None
        for claim in reversed(self._claims):
            try:
                released = await self._attempts.release(claim, end_lease=self._own) or released
            except TenfoldError as error:
                if error.code is not Code.NOT_HOLDER or not self.lost.is_set():
                    failed = error
        if self._own:
            self._lease.retire()
        if failed is not None:
            raise failed
        return released

    def abandon(self) -> None:
        """Relied on no more, but not given up: the lease runs out by itself. No keep-alive goes on for it."""
        if self._close():
            for claim in self._claims:
                self._attempts.drop(claim)
            if self._own:
                self._lease.retire()

    def _close(self) -> bool:
        """False if nothing can be held any more."""
        if self._over:
            return False
        self._over = True
        self._lease.on_lost.pop(self._lose, None)
        self._lease.hold(-1)
        if self._own:
            self._lease.stop_keeping()
        return not self._lease.lost and not self._lease.ended

    async def confirm(self, entries: Sequence[Entry], *, deadline_s: float | None = None) -> TransactionResult:
        """Writes `entries` and releases the lock, in one commit, if it is still held then. CrossShard, with nothing sent, unless
        every key lies in the lock's shard (one hash tag in {braces}). StaleToken: it was not held any more, nothing is written.
        If the outcome is unknown it may be confirmed again: StaleToken then means that it was confirmed, or lost."""
        claim = self._single()
        if self._over or self.lost.is_set():
            raise TenfoldError(Code.LEASE_LOST, self.lost_reason or "it was released")
        fence = Fence(name=claim.name, token=claim.token, holder=True, release=True)
        try:
            result = await self._kv.fenced([], entries, (), [fence], deadline_s)
        except TenfoldError as error:
            if error.code is Code.STALE_TOKEN:
                self._lose(error.message)
            raise
        if self._close():
            self._attempts.drop(claim)
        if self._own:
            self._lease.retire()
        return result


async def _done(doing: Awaitable[None]) -> None:
    await doing


class Hold:
    """`async with client.lock.hold(...) as held`. What the release meets is not told: the lease ends without it."""

    def __init__(self, acquire: Callable[[], Awaitable[Held]], on_lost: OnLost | None, *, cancel_on_lost: bool) -> None:
        self._acquire, self._on_lost, self._cancel_on_lost = acquire, on_lost, cancel_on_lost
        self._held: Held | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelled = False

    async def __aenter__(self) -> Held:
        self._held = held = await self._acquire()
        if self._on_lost is not None:
            held.when_lost(self._on_lost)
        if self._cancel_on_lost:
            self._task = asyncio.current_task()
            held.when_lost(self._cancel)
        return held

    def _cancel(self, held: Held) -> None:
        if self._task is not None:
            self._cancelled = self._task.cancel() or self._cancelled

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held, task = self._held, self._task
        assert held is not None
        self._task = None
        ours = self._cancelled and task is not None and task.uncancel() == 0
        with suppress(TenfoldError):
            await held.release()
        if ours and isinstance(error, asyncio.CancelledError):
            raise TenfoldError(Code.LEASE_LOST, f"{', '.join(held.names)}: {held.lost_reason}") from error
