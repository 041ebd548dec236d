"""The lock facade. Every method may raise TenfoldError; see cluster/errors.py for what its code allows to conclude.

A lock is held under a lease, which the client keeps alive, and names its holder by a fencing token, which grows with every grant.
Whoever was stopped for longer than its lease learns too late that it holds nothing any more: let what it writes carry the token
(`kv.put(..., if_fence=held)`), and the store refuses it.

Times are milliseconds where the name says so, else seconds. LockHeld: somebody else holds it (`holder`, `remaining_ms`, `waiters`).
DeadlinePassed: it was not to be had in the time given, and nothing is held. Deadlock names the cycle. An acquire that ends by an
indefinite error holds nothing in the end: what it may have got is released in the background, or by the end of its lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from client.arguments import whole
from client.fencing import lock_name
from client.kv import Kv
from client.lock_arguments import PLAIN, How, Mode, milliseconds, names_of, ttl_of, wait_of, wanted_of
from client.lock_attempts import Attempts
from client.lock_calls import LockCalls
from client.lock_held import Held, Hold, OnLost
from client.lock_lease import Lease
from client.lock_owners import Owner, Owners
from client.lock_session import LockSession
from client.lock_view import Holder, LockInfo, LockWatch, info_of, list_locks
from client.surroundings import Surroundings
from cluster.errors import Code, TenfoldError, invalid


class Lock:
    """`client.lock`."""

    def __init__(self, around: Surroundings, kv: Kv) -> None:
        self._around, self._kv = around, kv
        self._calls = LockCalls(around)
        self.owners = Owners(around.identity)

    # -- to hold -------------------------------------------------------------------------------------------------------

    def hold(
        self,
        names: str | Iterable[str],
        *,
        ttl: float = 10.0,
        wait: float | None = None,
        mode: Mode = "exclusive",
        capacity: int = 0,
        permits: int = 0,
        owner: str | None = None,
        metadata: str | bytes = b"",
        reentrant: bool = False,
        delay: float = 0.0,
        on_lost: OnLost | None = None,
        cancel_on_lost: bool = False,
    ) -> Hold:
        """`async with client.lock.hold("name", ttl=10) as held`. Seconds; `wait` None: as long as it takes.

        When the lock is lost, `held.lost` is set and `on_lost` called with it; with `cancel_on_lost` the body is cancelled, and the
        block ends by LeaseLost. See `acquire` for the rest."""
        how = How(mode, capacity, permits, owner, metadata, reentrant, milliseconds(delay, "delay"))
        ttl_ms = milliseconds(ttl, "ttl")
        wait_ms = None if wait is None else milliseconds(wait, "wait")
        return Hold(lambda: self.acquire(names, ttl_ms, wait_ms, how=how), on_lost, cancel_on_lost=cancel_on_lost)

    async def acquire(
        self,
        names: str | Iterable[str],
        ttl_ms: int,
        wait_ms: int | None = 0,
        mode: Mode = "exclusive",
        *,
        how: How = PLAIN,
    ) -> Held:
        """One name, or up to 64 that are reported together; a lease of their own keeps them until `release`.

        `wait_ms` 0: not at all, None: as long as it takes, in the order of those who asked. A group is taken name by name in
        an order that is the same for everybody: parts of it may be seen as held before it is complete. LockHeld, DeadlinePassed,
        Deadlock, TooManyWaiters, LockModeDiffers, LockTableFull."""
        how = how if mode == "exclusive" else how._replace(mode=mode)
        return await self.acquire_for(self.owners.of_task(), names, ttl_ms, wait_ms, how)

    async def acquire_for(
        self, owner: Owner, names: str | Iterable[str], ttl_ms: int, wait_ms: int | None, how: How, *, keep: bool = True
    ) -> Held:
        """As `acquire`, by this owner where `how` names none. Not to `keep` it: it runs out a whole ttl after the grant."""
        attempts = Attempts(self._calls, Lease(self._calls, ttl_of(ttl_ms, self._around.limits)))
        held = None
        try:
            held = await self._obtain_for(owner, attempts, names, wait_ms, how, own=True)
            if not keep:
                await attempts.lease.renew()
                attempts.lease.stop_keeping()
        except BaseException:
            if held is not None:
                held.give_back()
            attempts.lease.retire()
            raise
        return held

    def session(self, ttl_ms: int, *, on_lost: Callable[[str], None] | None = None) -> LockSession:
        """A lease for many locks: one keep-alive for all of them, and lost in one shard is lost in all."""
        attempts = Attempts(self._calls, Lease(self._calls, ttl_of(ttl_ms, self._around.limits)))
        return LockSession(self._obtain, attempts, on_lost)

    async def _obtain(self, attempts: Attempts, names: str | Iterable[str], wait_ms: int | None, how: How) -> Held:
        return await self._obtain_for(self.owners.of_task(), attempts, names, wait_ms, how, own=False)

    async def _obtain_for(
        self,
        owner: Owner,
        attempts: Attempts,
        names: str | Iterable[str],
        wait_ms: int | None,
        how: How,
        *,
        own: bool,
    ) -> Held:
        limits = self._around.limits
        checked, wanted, wait_ms = names_of(names, limits), wanted_of(how, owner.name, limits), wait_of(wait_ms, limits)
        if wanted.owner != owner.name:
            owner = Owner(wanted.owner)
        try:
            claims = await attempts.obtain_all(checked, wanted, wait_ms)
        except BaseException:
            owner.left = True
            raise
        return Held(self._around, self._kv, attempts, claims, owner, own=own)

    async def renew(self, held: Held) -> None:
        """See `Held.renew`."""
        await held.renew()

    async def release(self, held: Held) -> bool:
        """See `Held.release`."""
        return await held.release()

    # -- to look -------------------------------------------------------------------------------------------------------

    async def check(self, name: str, *, deadline_s: float | None = None) -> LockInfo:
        """Who holds it, who waits, and for how long."""
        state, _ = await self._calls.get(self._name(name), deadline_s)
        return info_of(state)

    async def list(self, prefix: str = "", *, deadline_s: float | None = None) -> list[LockInfo]:
        """All locks that are held or waited for, in the order of their names. The deadline is for each page."""
        if prefix:
            self._name(prefix, "prefix")
        return await list_locks(self._calls, prefix, deadline_s)

    def watch(self, name: str) -> LockWatch:
        """Who holds it, now and at every change."""
        return LockWatch(self._calls, self._name(name))

    # -- by an operator ------------------------------------------------------------------------------------------------

    async def force_release(self, name: str, token: int | None = None, *, deadline_s: float | None = None) -> bool:
        """Takes the lock away from whoever holds it, or only from the holder with `token`; whether anybody held it. The holder is
        told, but may go on for a moment: only fenced writes are safe from it."""
        if token is not None and whole(token, "token") < 1:
            raise invalid("token", f"{token}, must be 1 or more")
        return (await self._calls.force_release(self._name(name), token or 0, deadline_s)).released

    async def release_token(self, name: str, token: int, *, deadline_s: float | None = None) -> bool:
        """Gives up what is held under `token`, by whoever knows it; False if nobody holds the lock. NotHolder: somebody does,
        under another token, and nothing is changed. Whoever holds it is told, should it still be there."""
        if await self.force_release(name, token, deadline_s=deadline_s):
            return True
        state, _ = await self._calls.get(name, deadline_s)
        if state.holders:
            holder = state.holders[0].owner
            raise TenfoldError(Code.NOT_HOLDER, f"{name!r}: token {token} is not that of its holder {holder!r}")
        return False

    # -- leaders and periods -------------------------------------------------------------------------------------------

    async def campaign(self, name: str, value: str | bytes, ttl: float = 10.0, *, wait: float | None = None) -> Held:
        """Returns when this is the leader; `value` is what observers see of it. `resign`, or lose it like any lock."""
        wait_ms = None if wait is None else milliseconds(wait, "wait")
        return await self.acquire(name, milliseconds(ttl, "ttl"), wait_ms, how=How(metadata=value))

    async def resign(self, held: Held) -> bool:
        """The next one leads."""
        return await held.release()

    async def observe(self, name: str) -> AsyncIterator[Holder | None]:
        """The leader now, and at every change; `metadata` is the value it campaigned with. None: there is none."""
        async with self.watch(name) as changes:
            async for change in changes:
                yield change.holder

    async def run_once_every(self, name: str, every: float, work: Callable[[Held], Awaitable[None]]) -> None:
        """For ever: waits for its turn, and runs `work` at most once in `every` seconds among all who call this with that name.
        The lock is not given up but left to run out, so a period does not begin before the one before it has ended. An exception
        of `work` ends it, and the turn is used up. Each turn has an owner of its own: the one before is still held while the next
        is waited for."""
        while True:
            every_ms = milliseconds(every, "every")
            held = await self.acquire_for(self.owners.new(), name, every_ms, None, PLAIN, keep=False)
            try:
                await work(held)
            finally:
                held.abandon()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _name(self, name: str, field: str = "name") -> str:
        return lock_name(name, self._around.limits, field)
