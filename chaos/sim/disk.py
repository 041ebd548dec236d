"""Faults under the production log and state: the twins of `node.storage.memory` with time, stalls and two ways to die.

`kill` ends a process: the page cache survives, the state engine's memtable does not. `cut` takes the power away: of what
was not synced a random part survives, names and torn writes included. Each disk has a random stream of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from node.storage.memory import ForgettingDisk, ForgettingState, MemoryDisk, MemoryFile, MemoryState


class Medium:
    """One host's disk and state engine, over all incarnations of its node. Latencies in seconds."""

    def __init__(self, seed: int, host: str) -> None:
        self.chance = random.Random(f"{seed}/disk/{host}")
        self.disk = ForgettingDisk()
        self.state = ForgettingState()
        self.sync_s = 10 ** self.chance.uniform(-4.0, -2.3)
        self.slow = 1.0
        self.stalled_until = 0.0
        self.boots = 1

    def kill(self) -> None:
        self.disk.incarnation += 1
        self._lose_state()

    def cut(self) -> None:
        self.disk.crash(self.chance, keep=self.chance.random() < 0.8)
        self._lose_state()
        self.boots += 1

    def _lose_state(self) -> None:
        """The engine has no log of its own: mostly all since the last flush is gone, unless it flushed by itself."""
        self.state.crash(self.chance, keep=self.chance.random() < 0.4)

    def attach_disk(self, now: Callable[[], float]) -> SimDisk:
        return SimDisk(MemoryDisk(self.disk), self, now)

    def attach_state(self, now: Callable[[], float]) -> SimState:
        return SimState(self.state.attach(), self, now)

    async def work(self, now: Callable[[], float]) -> None:
        """As long as the device takes for one sync."""
        await asyncio.sleep(self.slow * self.sync_s * (0.5 + self.chance.expovariate(2.0)))
        while now() < self.stalled_until:
            await asyncio.sleep(self.stalled_until - now())

    def heal(self) -> None:
        self.slow = 1.0
        self.stalled_until = 0.0
        self.disk.capacity = None
        self.disk.fail_sync_in = None
        self.state.stalled = False


class SimFile:
    """A file whose sync takes its time; a process that dies meanwhile leaves open whether it happened."""

    def __init__(self, file: MemoryFile, medium: Medium, now: Callable[[], float]) -> None:
        self._file = file
        self._medium = medium
        self._now = now
        self.append = file.append
        self.read = file.read
        self.size = file.size
        self.truncate = file.truncate
        self.close = file.close

    async def sync(self) -> None:
        await self._medium.work(self._now)
        await self._file.sync()


class SimDisk:
    def __init__(self, disk: MemoryDisk, medium: Medium, now: Callable[[], float]) -> None:
        self._medium = medium
        self._now = now
        self._disk = disk
        self.exists = disk.exists
        self.list = disk.list
        self.make_directory = disk.make_directory
        self.rename = disk.rename
        self.remove = disk.remove
        self.sync_directory = disk.sync_directory

    def create(self, path: str) -> SimFile:
        return SimFile(self._disk.create(path), self._medium, self._now)

    def open(self, path: str, *, writable: bool = False) -> SimFile:
        return SimFile(self._disk.open(path, writable=writable), self._medium, self._now)


class SimState:
    """A state engine whose flush takes its time; what it keeps is what had been written when it was called."""

    def __init__(self, state: MemoryState, medium: Medium, now: Callable[[], float]) -> None:
        self._state = state
        self._medium = medium
        self._now = now
        self._incarnation = medium.state.incarnation
        self.get = state.get
        self.scan = state.scan
        self.write = state.write
        self.delete_range = state.delete_range
        self.snapshot = state.snapshot
        self.close = state.close

    async def flush(self) -> None:
        before = len(self._medium.state.undo)
        await self._medium.work(self._now)
        if self._incarnation == self._medium.state.incarnation:
            del self._medium.state.undo[:before]
