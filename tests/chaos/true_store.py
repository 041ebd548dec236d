"""Stores for the workload's tests: one that keeps the promise, and some that break it in ways a cluster might."""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

from cluster.errors import Code, TenfoldError


class Held(NamedTuple):
    value: bytes
    version: int


class TrueStore:
    """Linearizable: each operation takes effect at one moment, and waits before and after it. A share of the operations ends
    in DEADLINE_EXCEEDED, some having taken effect, some not."""

    def __init__(self, seed: int, unknown: float = 0.005) -> None:
        self._chance = random.Random(seed)
        self._unknown = unknown
        self.held: dict[str, Held] = {}
        self.index = 0

    async def _pass(self) -> None:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)

    async def _uncertain(self) -> None:
        await self._pass()
        if self._chance.random() < self._unknown:
            raise TenfoldError(Code.DEADLINE_EXCEEDED)

    def write(self, key: str, value: str) -> int:
        self.index += self._chance.randrange(1, 3)
        self.held[key] = Held(value.encode(), self.index)
        return self.index

    async def put(self, key: str, value: str, *, deadline_s: float) -> int:
        await self._uncertain()
        version = self.write(key, value)
        await self._uncertain()
        return version

    async def get(self, key: str, *, deadline_s: float) -> Held | None:
        await self._uncertain()
        found = self.held.get(key)
        await self._pass()
        return found

    async def compare_and_set(self, key: str, value: str, *, version: int, deadline_s: float) -> int:
        await self._uncertain()
        found = self.held[key].version if key in self.held else 0
        if found != version:
            await self._pass()
            raise TenfoldError(Code.VERSION_MISMATCH, expected=version, found=found)
        written = self.write(key, value)
        await self._uncertain()
        return written


class DoubtfulWrites(TrueStore):
    """Reads always answer."""

    async def get(self, key: str, *, deadline_s: float) -> Held | None:
        await self._pass()
        return self.held.get(key)


class DeposedLeader(TrueStore):
    """Now and then a read is answered from a state that is no longer true."""

    def __init__(self, seed: int, unknown: float = 0.005) -> None:
        super().__init__(seed, unknown)
        self._left_behind: dict[str, Held] = {}

    async def get(self, key: str, *, deadline_s: float) -> Held | None:
        found = await super().get(key, deadline_s=deadline_s)
        if found is not None:
            self._left_behind.setdefault(key, found)
        return self._left_behind.get(key) if self._chance.random() < 0.02 else found


class ForgetsSessions(TrueStore):
    """A put whose answer got lost is applied again when it is retried."""

    async def put(self, key: str, value: str, *, deadline_s: float) -> int:
        version = await super().put(key, value, deadline_s=deadline_s)
        if self._chance.random() < 0.02:
            await self._pass()
            version = self.write(key, value)
        return version


class AcknowledgesTooEarly(TrueStore):
    """The last writes of some keys were acknowledged and are gone: call `crash` at the end."""

    def __init__(self, seed: int, unknown: float = 0.005) -> None:
        super().__init__(seed, unknown)
        self._before: dict[str, Held] = {}

    def write(self, key: str, value: str) -> int:
        if key in self.held:
            self._before[key] = self.held[key]
        return super().write(key, value)

    def crash(self, keys: int) -> None:
        for key in sorted(self._before)[-keys:]:
            self.held[key] = self._before[key]
