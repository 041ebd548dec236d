"""Counters: increments that each take effect once, judged without a search.

Of one counter, each by one: what two increments answer differs; what ends before another begins has answered less; at the
end it stands between the increments that were acknowledged and those that may have happened.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

from client.kv import Kv
from cluster.errors import TenfoldError
from cluster.ring.ring import shard_of

PAUSE_S = 0.15
DEADLINE_S = 4.0
PER_COUNTER = 60
FINAL_ATTEMPTS = 5


class Step(NamedTuple):
    """An increment: `number` is what it answered, None where nobody knows."""

    began: float
    ended: float
    number: int | None


class Counters:
    """`run` belongs to the process of the client whose `kv` it is. Times are true ones."""

    def __init__(self, seed: int, shards: int, now: Callable[[], float], chance: random.Random) -> None:
        self.operations = 0
        self._now, self._chance, self._shards = now, chance, shards
        self._names = (f"counter/{seed}/{number}" for number in itertools.count(1))
        self._steps: dict[str, list[Step]] = {}
        self._final: dict[str, int] = {}
        self._active: dict[int, str] = {}

    async def run(self, kv: Kv, stopped: asyncio.Event, quiet: Callable[[], bool]) -> None:
        """Until `stopped`; then every counter is read once more."""
        await asyncio.gather(*(self._count(kv, shard, stopped, quiet) for shard in range(1, self._shards + 1)))

    async def _count(self, kv: Kv, shard: int, stopped: asyncio.Event, quiet: Callable[[], bool]) -> None:
        while not stopped.is_set():
            await asyncio.sleep(PAUSE_S * self._chance.expovariate(1.0))
            if not quiet():
                await self._increment(kv, self._counter(shard))

    def _counter(self, shard: int) -> str:
        key = self._active.get(shard)
        if key is None or len(self._steps[key]) >= PER_COUNTER:
            key = next(name for name in self._names if shard_of(name.encode(), self._shards) == shard)
            self._active[shard] = key
            self._steps[key] = []
        return key

    async def _increment(self, kv: Kv, key: str) -> None:
        self.operations += 1
        began, number = self._now(), None
        # Some have little time: they leave, and what they sent may still arrive.
        deadline_s = DEADLINE_S if self._chance.random() < 0.85 else self._chance.uniform(0.01, 0.5)
        try:
            number = await kv.increment(key, deadline_s=deadline_s)
        except TenfoldError as error:
            if error.definite:
                return
        self._steps[key].append(Step(began, self._now(), number))

    async def read_back(self, kv: Kv) -> None:
        """The last word on every counter. TenfoldError."""
        for key in self._steps:
            found = await kv.get(key)
            self._final[key] = int(found.value) if found is not None else 0

    def check(self) -> list[str]:
        return [problem for key, steps in self._steps.items() if (problem := self._problem(key, steps))][:5]

    def _problem(self, key: str, steps: list[Step]) -> str:
        known = [step for step in steps if step.number is not None]
        numbers = [step.number for step in known]
        if len(set(numbers)) < len(numbers):
            return f"{key}: two increments answered the same: {sorted(n for n in numbers if n is not None)}"
        highest = 0
        for ended, number in sorted((step.ended, step.number or 0) for step in known):
            late = [step for step in known if step.began > ended and (step.number or 0) < number]
            if late:
                return f"{key}: {late[0].number} was answered to an increment that began after {number} was"
            highest = number if number > highest else highest
        final = self._final.get(key)
        most = len(steps)
        if highest > most:
            return f"{key} went up to {highest} with {most} increments"
        if final is not None and not max(len(known), highest) <= final <= most:
            return f"{key} is {final} after {len(known)} increments that were acknowledged and {most - len(known)} in doubt"
        return ""
