"""Locks for the workload's tests: in memory, true to every law, or broken in one way a cluster might be."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.history import FEED, LockFacts, Recorder
from chaos.workloads.lock_calls import Ask, Granted, NotGranted, Released
from cluster.errors import Code, TenfoldError
from cluster.ring.ring import shard_of
from tests.chaos.true_store import TrueStore

Key = tuple[int, int]


@dataclass
class Lock:
    shard: int = 0
    last_token: int = 0
    delay_until: float = 0
    holders: dict[Key, tuple[Ask, int]] = field(default_factory=dict)
    waiters: dict[Key, tuple[Ask, asyncio.Future[int]]] = field(default_factory=dict)


class TrueLocks(TrueStore):
    """Every call takes effect at one moment; what is due happens when it is due. `bug` names the one law that is broken."""

    def __init__(self, recorder: Recorder, seed: int, bug: str = "", unknown: float = 0.003, shards: int = 2) -> None:
        super().__init__(seed, unknown)
        self.recorder, self.bug, self.shards = recorder, bug, shards
        self.locks: dict[str, Lock] = defaultdict(Lock)
        self.leases: dict[tuple[int, int], float] = {}  # (lease, shard) -> when it ends
        self.shown: dict[tuple[str, int], int] = {}

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def step(self) -> int:
        self.index += 1
        return self.index

    # -- leases --------------------------------------------------------------------------------------------------------

    def touch(self, lease: int, shard: int, ttl_ms: int) -> None:
        ends = max(self.leases.get((lease, shard), 0), self.now + ttl_ms / 1000)
        self.leases[lease, shard] = ends
        early = 0.5 if self.bug == "early" and self._chance.random() < 0.1 else 1.0
        asyncio.get_running_loop().call_later(early * ttl_ms / 1000 + 0.001, self.expire, lease, shard, early < 1)

    def expire(self, lease: int, shard: int, forced: bool = False) -> None:
        ends = self.leases.get((lease, shard))
        if ends is not None and (forced or ends <= self.now):
            if self.bug != "revived":
                del self.leases[lease, shard]
            self.drop(lease, shard, "LOST")

    def drop(self, lease: int, shard: int, why: str) -> bool:
        """All that the lease has in the shard."""
        index, found = self.step(), False
        for name, lock in self.locks.items():
            keys = [key for key in (*lock.holders, *lock.waiters) if key[0] == lease]
            if lock.shard == shard and keys:
                found = True
                for key in keys:
                    held = lock.holders.pop(key, None)
                    if held is not None and held[0].delay_ms and why == "LOST" and self.bug != "delay":
                        self.delay(name, held[0].delay_ms / 1000)
                    self.tell(lock, key, why, index)
                self.settle(name, index)
        return found

    def tell(self, lock: Lock, key: Key, why: str, index: int) -> None:
        waiter = lock.waiters.pop(key, None)
        if waiter is not None and not waiter[1].done():
            waiter[1].set_exception(NotGranted(why, index))

    def delay(self, name: str, seconds: float) -> None:
        lock = self.locks[name]
        lock.delay_until = max(lock.delay_until, self.now + seconds)
        asyncio.get_running_loop().call_later(seconds + 0.001, self.undelay, name)

    def undelay(self, name: str) -> None:
        if 0 < self.locks[name].delay_until <= self.now:
            self.locks[name].delay_until = 0
            self.settle(name, self.step())

    # -- grants --------------------------------------------------------------------------------------------------------

    def fits(self, lock: Lock, ask: Ask) -> bool:
        if lock.delay_until:
            return False
        holders = [held for held, _ in lock.holders.values()]
        if ask.mode == "semaphore":
            return sum(max(1, held.permits) for held in (*holders, ask)) <= ask.capacity
        return not holders or (ask.mode == "shared" and all(held.mode == "shared" for held in holders))

    def grant(self, lock: Lock, ask: Ask, index: int) -> int:
        token = lock.last_token = max(index, lock.last_token + 1)
        if self.bug == "token" and self._chance.random() < 0.02:
            token = max(1, token - 200)
        lock.holders[ask.lease, ask.attempt] = (ask, token)
        return token

    def settle(self, name: str, index: int) -> None:
        """After something was freed."""
        lock = self.locks[name]
        lost = self.bug == "lost waiter" and self._chance.random() < 0.05
        while lock.waiters and not lost:
            last = self.bug == "unfair" and self._chance.random() < 0.2
            key = list(lock.waiters)[-1 if last else 0]
            ask, told = lock.waiters[key]
            if not self.fits(lock, ask):
                break
            del lock.waiters[key]
            token = self.grant(lock, ask, index)
            if not told.done():
                told.set_result(token)
        self.publish(name, index)

    def publish(self, name: str, index: int) -> None:
        lock = self.locks[name]
        facts = LockFacts(index=index)
        for (lease, attempt), (_, token) in list(lock.holders.items())[:1]:
            facts = LockFacts(lease=lease, attempt=attempt, token=token, index=index)
        f = "holder" if facts.lease else "free"
        self.recorder.record(FEED, "ok", f, key=name, shard=lock.shard, lock=facts)

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def acquire(self, ask: Ask, queued: Callable[[int], None], *, deadline_s: float) -> Granted:
        await self._uncertain()
        lock, key, index = self.locks[ask.name], (ask.lease, ask.attempt), self.step()
        lock.shard = ask.shard
        if (ask.lease, ask.shard) not in self.leases and not ask.new_lease:
            raise TenfoldError(Code.UNKNOWN_LEASE)
        self.touch(ask.lease, ask.shard, ask.ttl_ms)
        if key in lock.holders:
            return Granted(lock.holders[key][1], index)
        for held, token in lock.holders.values():
            if ask.reentrant and held.lease == ask.lease and held.mode == "exclusive":
                lock.holders[key] = (ask, token if self.bug != "reentrant" else index)
                return Granted(lock.holders[key][1], index)
        if self.fits(lock, ask) and not lock.waiters:
            token = self.grant(lock, ask, index)
            self.publish(ask.name, index)
            await self._uncertain()
            return Granted(token, index)
        if not ask.wait_ms:
            raise NotGranted("HELD", index)
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lock.waiters[key] = (ask, told)
        queued(index)
        asyncio.get_running_loop().call_later(ask.wait_ms / 1000 + 0.001, self.time_out, ask)
        return Granted(await told, self.index)

    def time_out(self, ask: Ask) -> None:
        lock, key = self.locks[ask.name], (ask.lease, ask.attempt)
        if key in lock.waiters:
            index = self.step()
            self.tell(lock, key, "TIMED_OUT", index)
            self.settle(ask.name, index)

    async def renew(self, shard: int, lease: int, ttl_ms: int, *, deadline_s: float) -> None:
        await self._uncertain()
        self.step()
        if (lease, shard) not in self.leases:
            raise TenfoldError(Code.UNKNOWN_LEASE)
        self.touch(lease, shard, ttl_ms)
        await self._uncertain()

    async def release(self, ask: Ask, *, deadline_s: float) -> Released:
        await self._uncertain()
        lock, key, index = self.locks[ask.name], (ask.lease, ask.attempt), self.step()
        if self.bug == "releases another's" and key not in lock.holders and lock.holders:
            key = next(iter(lock.holders))
        found = key in lock.holders or key in lock.waiters
        lock.holders.pop(key, None)
        self.tell(lock, key, "CANCELLED", index)
        if found:
            self.settle(ask.name, index)
        await self._uncertain()
        return Released(found, index)

    async def end(self, shard: int, lease: int, *, deadline_s: float) -> Released:
        await self._uncertain()
        self.leases.pop((lease, shard), None)
        found = self.drop(lease, shard, "CANCELLED")
        return Released(found, self.index)

    async def confirm(self, key: str, value: str, fence: tuple[str, int], *, deadline_s: float) -> int:
        await self._uncertain()
        lock = self.locks[fence[0]]
        held = [key for key, (_, token) in lock.holders.items() if token == fence[1]]
        if not held:
            raise TenfoldError(Code.STALE_TOKEN)
        version = self.write(key, value)
        for each in held:
            if self.bug != "confirm":
                del lock.holders[each]
        self.settle(fence[0], version)
        await self._uncertain()
        return version

    async def force(self, name: str, shard: int, *, deadline_s: float) -> Released:
        await self._uncertain()
        lock, index = self.locks[name], self.step()
        found = bool(lock.holders)
        lock.shard, lock.delay_until = shard, 0
        lock.holders.clear()
        self.settle(name, index)
        await self._uncertain()
        return Released(found, index)

    async def put(  # type: ignore[override]
        self, key: str, value: str, fence: tuple[str, int] | None, *, deadline_s: float
    ) -> int:
        await self._uncertain()
        if fence is not None:
            name, token = fence
            shown = (name, shard_of(key.encode(), self.shards))
            lock = self.locks[name]
            stale = token < self.shown.get(shown, 0)
            if lock.shard == shown[1]:
                stale = all(token != held for _, held in lock.holders.values())
            if stale and self.bug != "fence":
                raise TenfoldError(Code.STALE_TOKEN)
            self.shown[shown] = max(token, self.shown.get(shown, 0))
        self.index += 1
        return self.write(key, value)
