"""One name, or a group of names, for a lease: asked, waited for, and given back when it comes to nothing.

Laws: an acquire whose outcome is unknown is asked again under the same attempt, so it is answered with the same token; what its
caller has no use for any more is released behind it, in the background, and so is whatever was asked more than once. A group is taken in the order (shard, name), which
every client keeps, so that groups alone never lock each other out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from client.lock_calls import LockCalls, answered
from client.lock_deadlock import Probes
from client.lock_lease import Lease
from client.lock_waits import End, Expected, Waits
from client.retry import backoff_s, settled
from cluster.errors import Code, TenfoldError
from proto.gen.lock_pb2 import LockAcquire, LockMode, LockRelease, LockResult

GRACE_S = 1.0
"""The shard ends a wait by its own time; the client does not wait much longer for the news."""
ASKED = 3
"""An acquire of unknown outcome is asked again for so many times the client's deadline."""


class Wanted(NamedTuple):
    """What is asked of each name."""

    mode: LockMode.ValueType
    capacity: int
    permits: int
    owner: str
    metadata: bytes
    reentrant: bool
    delay_ms: int


class Patience(NamedTuple):
    """`until` when it waits, if it `waits` at all; `endless`: a wait that the shard has ended then is begun anew."""

    until: float
    waits: bool
    endless: bool


class Claim(NamedTuple):
    """What is held."""

    name: str
    shard: int
    attempt: int
    token: int
    expected: Expected


class Attempts:
    """Of one lease. `own`: the lease ends with what it holds."""

    def __init__(self, calls: LockCalls, lease: Lease) -> None:
        self.lease = lease
        self._calls, self._around = calls, calls.around
        self._waits = Waits(calls, lease)
        self._probes = Probes(calls, lease, self._waits)

    async def obtain_all(self, names: Sequence[str], wanted: Wanted, wait_ms: int | None) -> list[Claim]:
        """All of them, or an error and none: what was got until then is given back."""
        order = sorted(names, key=lambda name: (self._calls.shard_of(name), name))
        until = self._now() + (wait_ms or 0) / 1000
        got: list[Claim] = []
        try:
            for name in order:
                patience = Patience(until, waits=wait_ms != 0, endless=False)
                got.append(
                    await (self._obtain(name, wanted, patience) if wait_ms is not None else self._at_last(name, wanted))
                )
            # To begin with a lease that is nearly over helps nobody.
            if self.lease.remaining_s < self.lease.ttl_ms / 3000:
                await self.lease.renew()
            self.lease.check()
            for claim in got:
                if claim.expected.lost:
                    raise TenfoldError(Code.LEASE_LOST, claim.expected.lost)
        except BaseException:
            for claim in reversed(got):
                self._undo(claim.expected, None)
            raise
        return got

    async def _at_last(self, name: str, wanted: Wanted) -> Claim:
        """However often the shard, which bounds each wait, has to be asked."""
        while True:
            until = self._now() + self._around.limits.lock_wait_ms_max / 1000
            try:
                return await self._obtain(name, wanted, Patience(until, waits=True, endless=True))
            except _WaitOver:
                continue

    def _now(self) -> float:
        return self._around.clock.monotonic()

    # -- one name ------------------------------------------------------------------------------------------------------

    async def _obtain(self, name: str, wanted: Wanted, patience: Patience) -> Claim:
        lease, shard = self.lease, self._calls.shard_of(name)
        lease.check()
        expected = self._waits.expect(name, shard, lease.next_attempt(), wanted.owner)
        asking = _Asking()
        try:
            result, sent, index = await self._ask(expected, wanted, patience, asking)
            if not result.granted and not result.waiting:
                asking.doubt = asking.again
                raise _held(name, result)
            asking.doubt = True
            expected.answer(result.token if result.granted else 0, index)
            expected.queued, expected.since = result.waiting, self._now()
            await lease.enter(shard, sent, index)
            expected.entered = True
            if not expected.ended.done():
                self._waits.follow(shard, index)
                self._probes.start()
            end = await self._end(expected, patience)
            if end.error is not None:
                asking.doubt = asking.again
                kind = _WaitOver if end.over else TenfoldError
                raise kind(end.error.code, end.error.message, **end.error.details)
            lease.check()
        except BaseException:
            if asking.doubt or asking.flight is not None:
                self._undo(expected, asking.flight)
            else:
                self._over(expected)
            raise
        return Claim(name, shard, expected.attempt, end.token, expected)

    async def _ask(
        self, expected: Expected, wanted: Wanted, patience: Patience, asking: _Asking
    ) -> tuple[LockResult, float, int]:
        """The machine's answer, when its request was first sent, its log index."""
        lease, around, until = self.lease, self._around, patience.until
        give_up = max(until, self._now()) + ASKED * around.deadline_s
        while True:
            sent, part = self._now(), lease.part(expected.shard)
            wait_ms = max(1, int((until - sent) * 1000)) if patience.waits else 0
            asked = LockAcquire(
                name=expected.name,
                lease=lease.id,
                attempt=expected.attempt,
                wait_ms=min(wait_ms, around.limits.lock_wait_ms_max),
                ttl_ms=lease.ttl_ms,
                new_lease=part is None,
                **wanted._asdict(),
            )
            asking.flight = self._calls.begin_acquire(expected.shard, asked, around.deadline_s)
            outcome = await asyncio.shield(asking.flight)
            asking.flight = None
            try:
                result, index = answered(outcome)
                return result, sent, index
            except TenfoldError as error:
                if error.code is Code.UNKNOWN_LEASE and part is not None and lease.part(expected.shard) is part:
                    lease.lose(f"shard {expected.shard}: {error.message}")
                    lease.check()
                if error.code is Code.UNKNOWN_LEASE:  # left there, expired, and not cleared away yet
                    await asyncio.sleep(backoff_s(1, around.limits, around.random))
                elif error.definite and not (asking.doubt and error.retriable):
                    raise
                asking.doubt = asking.again = asking.doubt or not error.definite
                if self._now() >= give_up:
                    raise settled(error, asking.doubt) from None
                lease.check()

    async def _end(self, expected: Expected, patience: Patience) -> End:
        left_s = None if patience.endless else max(0.0, patience.until - self._now() + GRACE_S)
        try:
            async with asyncio.timeout(left_s):
                return await asyncio.shield(expected.ended)
        except TimeoutError:
            message = f"{expected.name!r}: no news of the wait in the time given; it is given up, and the lease frees what it got"
            raise TenfoldError(Code.DEADLINE_EXCEEDED, message) from None

    # -- giving back ---------------------------------------------------------------------------------------------------

    async def release(self, claim: Claim, *, end_lease: bool) -> bool:
        """Whether there was something to give up. What is not answered is tried again in the background."""
        self._over(claim.expected)
        asked = self._release_of(claim.expected, end_lease)
        try:
            return (await self._calls.release(claim.shard, asked, None)).released
        except BaseException as error:
            if not isinstance(error, TenfoldError) or not error.definite or error.retriable:
                self._around.tasks(self._give_back(claim.expected), f"release of {claim.name}")
            raise

    def drop(self, claim: Claim) -> None:
        """It is given up already, or left to run out."""
        self._over(claim.expected)

    def drop_if_lease_lives(self, claim: Claim) -> None:
        """It was taken away, by an operator or since the lease has expired; then the lease is lost everywhere."""
        self._around.tasks(self._drop_if_lease_lives(claim), f"{claim.name} was taken away")

    async def _drop_if_lease_lives(self, claim: Claim) -> None:
        lease, failures = self.lease, 0
        while lease.knows(claim.shard) and not await lease.renew_in(claim.shard):
            failures += 1
            await asyncio.sleep(backoff_s(failures, self._around.limits, self._around.random))
        self.drop(claim)

    def give_back(self, claim: Claim) -> None:
        """In the background."""
        self._undo(claim.expected, None)

    def give_back_late(self, claim: Claim) -> None:
        """It was dropped and may still be held: where other claims keep the lease alive, it does not run out by itself."""
        self._around.tasks(self._give_back_late(claim.expected), f"give back {claim.name} in time")

    async def _give_back_late(self, expected: Expected) -> None:
        await asyncio.sleep(self.lease.ttl_ms / 1000)
        if self.lease.knows(expected.shard):
            await self._give_back(expected)

    def _release_of(self, expected: Expected, end_lease: bool = False) -> LockRelease:
        return LockRelease(name=expected.name, lease=self.lease.id, attempt=expected.attempt, end_lease=end_lease)

    def _over(self, expected: Expected) -> None:
        """May be said twice."""
        expected.on_lost = None
        self._waits.forget(expected)
        if expected.entered:
            expected.entered = False
            self.lease.leave(expected.shard)

    def _undo(self, expected: Expected, flight: asyncio.Future[Any] | None) -> None:
        self._over(expected)
        self._around.tasks(self._give_back(expected, flight), f"give back {expected.name}")

    async def _give_back(self, expected: Expected, flight: asyncio.Future[Any] | None = None) -> None:
        """Until the shard has answered. A lease that nobody keeps alive frees it at its end, so no longer than that."""
        if flight is not None:
            await flight  # what is still under way could come after its release
        lease, failures = self.lease, 0
        until = self._now() + lease.ttl_ms / 1000
        while self._now() < until or (lease.knows(expected.shard) and not lease.lost):
            try:
                await self._calls.release(
                    expected.shard, self._release_of(expected, not lease.knows(expected.shard)), None
                )
                return
            except TenfoldError as error:
                if error.definite and not error.retriable and error.code is not Code.DEADLINE_PASSED:
                    return
            failures += 1
            await asyncio.sleep(backoff_s(failures, self._around.limits, self._around.random))


class _WaitOver(TenfoldError):
    """The shard has ended the wait, since its time was up."""


class _Asking:
    """How far an acquire has come, for who has to undo it. `doubt`: the shard may hold something of it. `again`: it was asked again
    while it was in doubt."""

    __slots__ = ("again", "doubt", "flight")

    def __init__(self) -> None:
        self.again = self.doubt = False
        self.flight: asyncio.Future[Any] | None = None


def _held(name: str, result: LockResult) -> TenfoldError:
    holder = result.holder
    who = f"held by {holder.owner!r} for {holder.remaining_ms} ms more" if holder.owner else "not free yet"
    return TenfoldError(
        Code.LOCK_HELD,
        f"{name!r} is {who}, {result.waiters} wait",
        holder=holder.owner,
        remaining_ms=holder.remaining_ms,
        waiters=result.waiters,
    )
