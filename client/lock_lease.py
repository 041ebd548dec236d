"""A lease as its holder sees it: kept alive in every shard where it has anything, believed until the shortest of them may end.

Laws: a shard's lease is believed from the moment its last answered renewal was sent, for the ttl less what clocks may drift, so the
belief ends before the shard's own expiry. Lost in one shard is lost in all, once and for ever. A belief that runs out unanswered is
lost, too, as soon as anything is held under it; one who only waits goes on asking, since it has nothing to lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from client.lock_calls import LockCalls
from client.retry import backoff_s
from client.tasks import guarded
from cluster.errors import Code, TenfoldError

RENEW_EVERY = 1 / 3
"""Of the ttl: two renewals may fail before the third is too late."""
FRESH = 1 / 6
"""Of the ttl: an answer that left less is followed by a renewal before anybody relies on it."""
RENEWALS = 5
"""In a row, each answered too late to be relied on: then the ttl is too short for this network."""


class _Part:
    """The lease in one shard. `claims` hold or wait there. While one of them is `confirming`, the shard may have ended the lease with
    the last of them."""

    __slots__ = ("claims", "confirming", "index", "keeper", "sent")

    def __init__(self, sent: float, index: int) -> None:
        self.sent = sent
        self.index = index
        self.claims = self.confirming = 0
        self.keeper: asyncio.Task[None] | None = None


class Lease:
    """`on_lost` are told the reason, once. `keep`: renewed for ever, not only while something waits."""

    def __init__(self, calls: LockCalls, ttl_ms: int, *, keep: bool = True) -> None:
        around = calls.around
        self.id = around.identity.randrange(1, 2**64)
        self.ttl_ms = ttl_ms
        self.keep = keep
        self.ended = False
        self.lost = ""  # the reason
        self.on_lost: dict[Callable[[str], None], None] = {}
        self.on_kept: Callable[[int, int], None] | None = None  # shard, log index: first renewed there
        self.held = 0
        self._calls, self._around = calls, around
        self._span_s = ttl_ms / 1000 * (1 - around.limits.lease_drift_percent / 100)
        self._parts: dict[int, _Part] = {}
        self._attempts = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- what is believed ----------------------------------------------------------------------------------------------

    @property
    def until(self) -> float:
        """The moment on the client's clock at which the belief ends."""
        if self.lost or self.ended or not self._parts:
            return float("-inf")
        return min(part.sent for part in self._parts.values()) + self._span_s

    @property
    def remaining_s(self) -> float:
        return max(0.0, self.until - self._around.clock.monotonic())

    @property
    def shards(self) -> list[int]:
        return list(self._parts)

    def check(self) -> None:
        """LEASE_LOST."""
        if self.lost or self.ended:
            raise TenfoldError(Code.LEASE_LOST, self.lost or "the lease was ended")

    def next_attempt(self) -> int:
        self._attempts += 1
        return self._attempts

    def knows(self, shard: int) -> bool:
        return shard in self._parts

    def part(self, shard: int) -> object:
        """The same one for as long as anything holds or waits there without a break, None where nothing does."""
        return self._parts.get(shard)

    # -- what is in which shard ----------------------------------------------------------------------------------------

    async def enter(self, shard: int, sent: float, index: int) -> None:
        """An attempt holds or waits in the shard, as the answer to a request sent at `sent` says. LEASE_LOST; DEADLINE_EXCEEDED if
        no answer comes early enough to be relied on."""
        renewals = 0
        while not self._believed(sent):  # the answer was long on its way: nothing can be relied on yet
            renewals += 1
            if renewals > RENEWALS:
                message = f"shard {shard} answers too slowly to keep a lease of {self.ttl_ms} ms"
                raise TenfoldError(Code.DEADLINE_EXCEEDED, message)
            sent = self._around.clock.monotonic()
            try:
                await self._calls.renew(shard, self.id, self.ttl_ms, self._around.deadline_s)
            except TenfoldError as error:
                if error.code is Code.UNKNOWN_LEASE:
                    self.lose(f"shard {shard}: {error.message}")
                    break
                raise
        self.check()
        part = self._parts.get(shard)
        if part is None:
            part = self._parts[shard] = _Part(sent, index)
        part.claims += 1
        self._renewed(part, sent)
        if part.keeper is None and self.keep:
            part.keeper = self._around.tasks(self._keep(shard, part), f"lease {self.id:x} in shard {shard}")

    def _believed(self, sent: float) -> bool:
        return sent + self._span_s - self._around.clock.monotonic() > self.ttl_ms / 1000 * FRESH

    def leave(self, shard: int) -> None:
        """An attempt holds or waits there no more."""
        part = self._parts.get(shard)
        if part is None:
            return
        part.claims -= 1
        assert part.claims >= 0, "who leaves has entered"
        if part.claims == 0:
            del self._parts[shard]
            _cancel(part)
        self._arm()

    def confirming(self, shard: int, change: int) -> None:
        """A claim there is being confirmed, or no more: that the lease is unknown meanwhile is no loss."""
        part = self._parts.get(shard)
        if part is not None:
            part.confirming = max(0, part.confirming + change)

    def hold(self, change: int) -> None:
        """Something is relied on from now on, or no more."""
        self.held += change
        assert self.held >= 0
        self._arm()

    def stop_keeping(self) -> None:
        """It runs out by itself."""
        self.keep = False
        for part in self._parts.values():
            _cancel(part)
            part.keeper = None

    # -- its life ------------------------------------------------------------------------------------------------------

    async def renew(self) -> None:
        """In all shards, at once; returns when all have answered. LEASE_LOST, or the error of a shard that did not answer."""
        self.check()
        asked = [
            self._around.tasks(self._renew_once(shard, part), f"renewal of lease {self.id:x}")
            for shard, part in self._parts.items()
        ]
        for task in asked:
            await task
        self.check()
        if any(not self._believed(part.sent) for part in self._parts.values()):
            raise TenfoldError(Code.DEADLINE_EXCEEDED, "a shard did not answer the renewal in time")

    async def _keep(self, shard: int, part: _Part) -> None:
        clock, every_s = self._around.clock, self.ttl_ms / 1000 * RENEW_EVERY
        failures = 0
        first = True
        while True:
            await asyncio.sleep(max(0.0, part.sent + every_s - clock.monotonic()))
            if await self._renew(shard, part):
                failures = 0
                if first and self.on_kept is not None:
                    self.on_kept(shard, part.index)
                first = False
            else:
                failures += 1
                await asyncio.sleep(backoff_s(failures, self._around.limits, self._around.random))

    async def renew_in(self, shard: int) -> bool:
        """Whether it lives there, as far as anybody has answered; it is lost where it does not."""
        part = self._parts.get(shard)
        return part is not None and await self._renew(shard, part)

    async def _renew_once(self, shard: int, part: _Part) -> None:
        await self._renew(shard, part)

    async def _renew(self, shard: int, part: _Part) -> bool:
        sent = self._around.clock.monotonic()
        deadline_s = max(0.05, self.ttl_ms / 1000 * RENEW_EVERY)
        try:
            await self._calls.renew(shard, self.id, self.ttl_ms, min(deadline_s, self._around.deadline_s))
        except TenfoldError as error:
            if error.code is Code.UNKNOWN_LEASE and self._parts.get(shard) is part and not part.confirming:
                self.lose(f"shard {shard}: {error.message}")
            return False
        self._renewed(part, sent)
        return True

    def _renewed(self, part: _Part, sent: float) -> None:
        part.sent = max(part.sent, sent)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.held and not self.lost and not self.ended and self._parts:
            left_s = max(0.0, self.until - self._around.clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._run_out)

    def _run_out(self) -> None:
        self._timer = None
        if self.until <= self._around.clock.monotonic():
            self.lose(f"no renewal was answered for {self._span_s:g} s, and the lease may have ended")
        else:
            self._arm()

    def lose(self, reason: str) -> None:
        """Who holds under it may not have stopped yet, so what it holds elsewhere is freed as if it had expired there, too; one
        that is left to run out runs out."""
        if self.lost or self.ended:
            return
        self.lost = reason
        shards = self._stop()
        if self.keep:
            self._give_up(shards, unclean=True)
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        for told in list(self.on_lost):
            guarded(told, reason)

    async def end(self) -> None:
        """With all that it holds and waits for; returns when every shard has answered or could not be asked. May be called twice."""
        if not self.ended and not self.lost:
            self.ended = True
            shards = self._stop()
            self._tell("the lease was ended")
            for task in self._give_up(shards, unclean=False):
                await task

    def retire(self) -> None:
        """Nothing is left of it anywhere."""
        self.ended = True
        self._stop()

    def _stop(self) -> list[int]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        parts, self._parts = self._parts, {}
        for part in parts.values():
            _cancel(part)
        return list(parts)

    def _give_up(self, shards: list[int], *, unclean: bool) -> list[asyncio.Task[None]]:
        name = f"end of lease {self.id:x}"
        return [self._around.tasks(self._end_in(shard, unclean=unclean), name) for shard in shards]

    async def _end_in(self, shard: int, *, unclean: bool) -> None:
        """What does not succeed here, the shard does by itself when the ttl is over."""
        try:
            await self._calls.end_lease(
                shard, self.id, min(self.ttl_ms / 1000, self._around.deadline_s), unclean=unclean
            )
        except TenfoldError:
            return


def _cancel(part: _Part) -> None:
    if part.keeper is not None and part.keeper is not asyncio.current_task():
        part.keeper.cancel()
