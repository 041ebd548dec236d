"""The lock facade. Every method may raise TenfoldError; see cluster/errors.py for what its code allows to conclude.

A lock is held under a lease, which the client keeps alive, and names its holder by a fencing token, which grows with every grant.
Whoever was stopped for longer than its lease learns too late that it holds nothing any more: let what it writes carry the token
(`kv.put(..., if_fence=held)`), and the store refuses it.

Times are milliseconds where the name says so, else seconds. LockHeld: somebody else holds it (`holder`, `remaining_ms`, `waiters`).
DeadlinePassed: it was not to be had in the time given, and nothing is held. Deadlock names the cycle. An acquire that ends by an
indefinite error holds nothing in the end: what it may have got is released in the background, or by the end of its lease.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import count

from client.arguments import whole
from client.fencing import lock_name
from client.kv import Kv
from client.lock_arguments import PLAIN, How, Mode, milliseconds, names_of, ttl_of, wait_of, wanted_of
from client.lock_attempts import Attempts
from client.lock_calls import LockCalls
from client.lock_held import Held, Hold, OnLost
from client.lock_lease import Lease
from client.lock_session import LockSession
from client.lock_view import Holder, LockInfo, LockWatch, info_of, list_locks
from client.surroundings import Surroundings
from cluster.errors import Code, TenfoldError, invalid
from proto.gen.lock_pb2 import LockRelease


class Lock:
    """`client.lock`."""

    def __init__(self, around: Surroundings, kv: Kv) -> None:
        self._around, self._kv = around, kv
        self._calls = LockCalls(around)
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[object], str] = weakref.WeakKeyDictionary()
        self._who = ""
        self._numbers = count(1)

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
        return await self._acquire(
            names, ttl_ms, wait_ms, how if mode == "exclusive" else how._replace(mode=mode), keep=True
        )

    def session(self, ttl_ms: int, *, on_lost: Callable[[str], None] | None = None) -> LockSession:
        """A lease for many locks: one keep-alive for all of them, and lost in one shard is lost in all."""
        attempts = Attempts(self._calls, Lease(self._calls, ttl_of(ttl_ms, self._around.limits)))
        return LockSession(self._obtain, attempts, on_lost)

    async def _acquire(
        self, names: str | Iterable[str], ttl_ms: int, wait_ms: int | None, how: How, *, keep: bool
    ) -> Held:
        attempts = Attempts(self._calls, Lease(self._calls, ttl_of(ttl_ms, self._around.limits)))
        try:
            held = await self._obtain(attempts, names, wait_ms, how, own=True)
        except BaseException:
            attempts.lease.retire()
            raise
        if not keep:
            await attempts.lease.renew()  # so that it runs out a whole ttl after the grant
            attempts.lease.stop_keeping()
        return held

    async def _obtain(
        self, attempts: Attempts, names: str | Iterable[str], wait_ms: int | None, how: How, *, own: bool = False
    ) -> Held:
        limits = self._around.limits
        checked, wanted = names_of(names, limits), wanted_of(how, self._task_owner(), limits)
        claims = await attempts.obtain_all(checked, wanted, wait_of(wait_ms, limits))
        return Held(self._around, self._kv, attempts, claims, wanted.owner, own=own)

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
        under another token, and nothing is changed."""
        state, _ = await self._calls.get(self._name(name), deadline_s)
        mine = [each for each in state.holders if each.token == token]
        if not mine:
            if state.holders:
                raise TenfoldError(
                    Code.NOT_HOLDER, f"{name!r}: token {token} is not that of its holder {state.holders[0].owner!r}"
                )
            return False
        released = False
        for each in mine:
            asked = LockRelease(name=name, lease=each.lease, attempt=each.attempt, end_lease=True)
            released = (await self._calls.release(self._calls.shard_of(name), asked, deadline_s)).released or released
        return released

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
        of `work` ends it, and the turn is used up."""
        while True:
            held = await self._acquire(name, milliseconds(every, "every"), None, PLAIN, keep=False)
            try:
                await work(held)
            finally:
                held.abandon()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _name(self, name: str, field: str = "name") -> str:
        return lock_name(name, self._around.limits, field)

    @property
    def client_name(self) -> str:
        """Drawn at random: what the owners of this client that name themselves no other begin with."""
        if not self._who:
            self._who = f"{self._around.random.randrange(0, 2**48):012x}"
        return self._who

    def _task_owner(self) -> str:
        """A task acts step by step, so it is one owner, whatever leases it uses."""
        task = asyncio.current_task()
        assert task is not None, "who awaits is a task"
        owner = self._owners.get(task)
        if owner is None:
            owner = self._owners[task] = f"{self.client_name}.{next(self._numbers)}"
        return owner
