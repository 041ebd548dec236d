"""What is held: its tokens, how long it may be relied on, and how it ends.

Law: `lost` is set once and for good, at the latest when `remaining_s` has come to nothing. A token is what protects data from a
holder that was stopped in between; the event is only the news. What is lost, or may have been given up, is kept alive no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType

from client.kv import Kv
from client.lock_attempts import Attempts, Claim
from client.lock_owners import Owner
from client.results import Entry, TransactionResult
from client.surroundings import Surroundings
from client.tasks import guarded
from cluster.errors import Code, TenfoldError, invalid
from proto.gen.entry_pb2 import Fence

OnLost = Callable[["Held"], Awaitable[None] | None]


class Held:
    """One name or a group. `lost`: somebody else may hold it from now on; `lost_reason` says why. `owner` is who holds it."""

    def __init__(
        self, around: Surroundings, kv: Kv, attempts: Attempts, claims: list[Claim], owner: Owner, *, own: bool
    ) -> None:
        self.owner = owner.name
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.tokens = {claim.name: claim.token for claim in sorted(claims)}
        self._around, self._kv, self._attempts, self._claims, self._own = around, kv, attempts, claims, own
        self._there = list(claims)  # what may be left to give up
        self._relied_on, self._doubted, self._over = True, False, False
        self._on_lost: list[OnLost] = []
        self._who = owner
        owner.held += 1
        self._lease = attempts.lease
        self._lease.on_lost[self._lose] = None
        self._lease.hold(1)
        for claim in claims:
            claim.expected.on_lost = partial(self._taken, claim)

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
        self._let_go(left=True)
        for told in self._on_lost:
            self._tell(told)

    def _taken(self, claim: Claim, reason: str) -> None:
        """In its shard this name is held no more. Whether the lease has ended with it is still to be found out."""
        if claim in self._there:
            self._there.remove(claim)
            if self._own:
                self._attempts.drop(claim)
            else:
                self._attempts.drop_if_lease_lives(claim)
        self._lose(reason)

    def _let_go(self, *, left: bool) -> None:
        """Nobody relies on it any more. `left`: something of it may stay in a shard."""
        if self._relied_on:
            self._relied_on = False
            self._lease.on_lost.pop(self._lose, None)
            self._lease.hold(-1)
            self._who.held -= 1
            if self._own:
                self._lease.stop_keeping()
        self._who.left = self._who.left or left

    def _tell(self, told: OnLost) -> None:
        doing = guarded(told, self)
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
        if not self._close(left=False):
            return False
        try:
            return await self._release_all()
        except BaseException:
            self._who.left = True
            raise
        finally:
            if self._own:
                self._lease.retire()

    async def _release_all(self) -> bool:
        """If the caller goes away meanwhile, the rest is given up in the background."""
        released, failed = False, None
        try:
            while self._there:
                try:
                    released = await self._attempts.release(self._there.pop(), end_lease=self._own) or released
                except TenfoldError as error:
                    if error.code is not Code.NOT_HOLDER or not self.lost.is_set():
                        failed = error
        finally:
            self._give_back()
        if failed is not None:
            raise failed
        return released

    def abandon(self) -> None:
        """Relied on no more, but not given up: the lease runs out by itself. No keep-alive goes on for it."""
        if self._close(left=True):
            for claim in self._there:
                self._attempts.drop(claim)
            if self._own:
                self._lease.retire()

    def give_back(self) -> None:
        """In the background."""
        if self._close(left=True):
            self._give_back()
            if self._own:
                self._lease.retire()

    def _give_back(self) -> None:
        while self._there:
            self._attempts.give_back(self._there.pop())

    def _close(self, *, left: bool) -> bool:
        """False if nothing can be held any more."""
        if self._over:
            return False
        self._over = True
        self._let_go(left=left)
        return not self._lease.lost and not self._lease.ended

    async def confirm(self, entries: Sequence[Entry], *, deadline_s: float | None = None) -> TransactionResult:
        """Writes `entries` and releases the lock, in one commit, if it is still held then. CrossShard, with nothing sent, unless
        every key lies in the lock's shard (one hash tag in {braces}). StaleToken: it was not held any more, nothing is written.
        If the outcome is unknown, the lock counts as lost, since it may be somebody else's; for the ttl it may be confirmed again
        all the same: StaleToken then means that it was confirmed, or lost."""
        claim = self._single()
        if self._over or (self.lost.is_set() and not self._doubted):
            raise TenfoldError(Code.LEASE_LOST, self.lost_reason or "it was released")
        fence = Fence(name=claim.name, token=claim.token, holder=True, release=True)
        self._lease.confirming(claim.shard, 1)
        try:
            result = await self._kv.fenced([], entries, (), [fence], deadline_s)
        except BaseException as error:
            if not isinstance(error, TenfoldError) or not error.definite:
                self._doubt(claim)
            elif error.code is Code.STALE_TOKEN:
                self._taken(claim, error.message)
            raise
        finally:
            self._lease.confirming(claim.shard, -1)
        self._there.clear()
        self._attempts.drop(claim)
        self._close(left=False)
        if self._own:
            self._lease.retire()
        return result

    def _doubt(self, claim: Claim) -> None:
        """It may be confirmed. A lease of its own runs out; others of a session may keep that lease alive."""
        if not self._doubted and claim in self._there:
            self._attempts.drop(claim)
            if not self._own:
                self._attempts.give_back_late(claim)
        self._doubted = True
        self._lose("a confirm whose outcome is unknown may have released it")


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
        """The body's own call that found the loss tells it by itself."""
        if self._task is not None and self._task is not asyncio.current_task():
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
