"""Keys that expire: not before their time, for good, and surely in the end.

Each key is written once with a TTL, some are written again without one before it is over. Shard time runs no faster than the
fastest clock allowed and stands still without a leader, so a key may live longer and never shorter.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

from client.kv import Consistency, Kv
from cluster.errors import TenfoldError
from cluster.ring.ring import shard_of

TTL_MS = (60, 2500)
DRIFT = 0.9
SLACK_S = 0.005
DEADLINE_S = 3.0
AT_LAST_S = 30.0
LOOK_S = 0.1
RENEWED_SHARE = 0.3
KEYS_AT_ONCE_MAX = 32
"""Well below what the smallest client holds (`knobs.py`)."""


class Expiries:
    """`run` belongs to the process of the client whose `kv` it is. Times are true ones. `breaches` are for people."""

    def __init__(self, seed: int, shards: int, now: Callable[[], float], chance: random.Random) -> None:
        self.breaches: list[str] = []
        self.operations = 0
        self._now, self._chance, self._shards = now, chance, shards
        self._names = (f"ttl/{seed}/{number}" for number in itertools.count(1))
        self._mortal: dict[str, float] = {}  # acknowledged, and not to live for ever: TTL in seconds
        self._immortal: dict[str, None] = {}

    async def run(self, kv: Kv, stopped: asyncio.Event, quiet: Callable[[], bool]) -> None:
        await asyncio.gather(*(self._lane(kv, shard, stopped, quiet) for shard in range(1, self._shards + 1)))

    async def _lane(self, kv: Kv, shard: int, stopped: asyncio.Event, quiet: Callable[[], bool]) -> None:
        while not stopped.is_set():
            await asyncio.sleep(self._chance.expovariate(4.0))
            if not quiet():
                key = next(name for name in self._names if shard_of(name.encode(), self._shards) == shard)
                await self._life(kv, key, stopped)

    async def _life(self, kv: Kv, key: str, stopped: asyncio.Event) -> None:
        low, high = TTL_MS
        ttl_ms = round(low * (high / low) ** self._chance.random())
        ttl_s = ttl_ms / 1000
        born = self._now()
        self.operations += 1
        try:
            await kv.put(key, key, ttl_ms=ttl_ms, deadline_s=DEADLINE_S)
        except TenfoldError:
            return
        if self._chance.random() < RENEWED_SHARE:
            await asyncio.sleep(ttl_s * self._chance.uniform(0.0, 1.0))
            try:
                await kv.put(key, key, deadline_s=DEADLINE_S)
            except TenfoldError:
                return
            self._immortal[key] = None
        else:
            self._mortal[key] = ttl_s
        gone = False
        for _ in range(8):
            await asyncio.sleep(ttl_s * self._chance.uniform(0.05, 0.35))
            gone = await self._look(kv, key, born + DRIFT * ttl_s - SLACK_S, gone)
            if gone:
                self._mortal.pop(key, None)  # what comes back is found by the looks that follow
            if stopped.is_set():
                return

    async def _look(self, kv: Kv, key: str, not_before: float, gone: bool) -> bool:
        consistency: Consistency = "lease" if self._chance.random() < 0.5 else "linearizable"
        self.operations += 1
        try:
            found = await kv.get(key, consistency=consistency, deadline_s=DEADLINE_S)
        except TenfoldError:
            return gone
        ended = self._now()
        if found is not None:
            if gone:
                self.breaches.append(f"{key} is there again at {ended:.3f}")
        elif key in self._immortal:
            self.breaches.append(f"{key} was written without a TTL and is gone at {ended:.3f}")
        elif ended < not_before:
            self.breaches.append(f"{key} is gone at {ended:.3f}, before {not_before:.3f}")
        return gone or found is None

    async def end(self, kv: Kv) -> None:
        """Once nothing is broken any more: those that can die do. TenfoldError."""
        deadline = self._now() + max(self._mortal.values(), default=0.0) + AT_LAST_S
        left = list(self._mortal)
        while left and self._now() < deadline:
            left = [key for key, there in await self._there(kv, left) if there]
            if left:
                await asyncio.sleep(LOOK_S)
        if left:
            self.breaches.append(f"{left[0]} never expires")
        for key, there in await self._there(kv, list(self._immortal)):
            if not there:
                self.breaches.append(f"{key} was written without a TTL and is gone")

    async def _there(self, kv: Kv, keys: list[str]) -> list[tuple[str, bool]]:
        """Which of them are there. TenfoldError."""
        found: list[tuple[str, bool]] = []
        for first in range(0, len(keys), KEYS_AT_ONCE_MAX):
            part = keys[first : first + KEYS_AT_ONCE_MAX]
            values = await kv.get_many(part)
            found += [(key, value is not None) for key, value in zip(part, values, strict=True)]
        return found
