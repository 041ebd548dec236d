"""Faults under the production log and state: the twins of `node.storage.memory` with time, stalls and two ways to die.

`kill` ends a process: the page cache survives, the state engine's memtable does not. `cut` takes the power away: of what
was not synced a random part survives, names and torn writes included. Each disk has a random stream of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from cluster.ports import StorageFailed
from node.storage.memory import ForgettingDisk, ForgettingState, MemoryDisk, MemoryFile, MemoryState

LOG = "log/"


class Medium:
    """One host's disk and state engine, over all incarnations of its node. Latencies in seconds."""

    def __init__(self, seed: int, host: str) -> None:
        self.chance = random.Random(f"{seed}/disk/{host}")
        self.disk = ForgettingDisk()
        self.state = ForgettingState()
        self.sync_s = 10 ** self.chance.uniform(-4.0, -2.3)
        self.slow = 1.0
        self.stalled_until = 0.0
        self.unreadable_until = 0.0
        self.refused = False
        """A read has failed: a node that ends for that keeps the law."""
        self.boots = 1
        self._appends: dict[str, tuple[int, int]] = {}  # path -> where the last two appends began

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

    def wipe(self) -> None:
        """Another disk in its place, with nothing on it. The node is down."""
        self.disk, self.state = ForgettingDisk(), ForgettingState()
        self._appends.clear()
        self.boots += 1

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
        self.stalled_until = self.unreadable_until = 0.0
        self.disk.capacity = None
        self.disk.fail_sync_in = None
        self.state.stalled = False

    # -- damage --------------------------------------------------------------------------------------------------------

    def appended(self, path: str, offset: int) -> None:
        self._appends[path] = (self._appends.get(path, (0, 0))[1], offset)

    def renamed(self, old: str, new: str | None) -> None:
        """`new` is None when it was removed."""
        appends = self._appends.pop(old, None)
        if new is not None and appends is not None:
            self._appends[new] = appends

    def old_bytes(self, path: str) -> int:
        """How much of a file of the log is surely older than what a power cut may tear: all of it where two more files follow, else
        what lies before its last two appends."""
        newest = sorted(each for each in self.disk.names if each.startswith(LOG))[-2:]
        size = len(self.disk.names[path].data)
        return size if path not in newest else min(size, self._appends.get(path, (0, 0))[0])

    def blank(self, path: str, start: int, end: int) -> bool:
        """These bytes read as zeros, as if never written; False where they did already."""
        inode = self.disk.names[path]
        if not any(inode.data[start:end]):
            return False
        for target in (inode.data, inode.durable):
            stop = min(end, len(target))
            target[start:stop] = bytes(max(0, stop - start))
        return True

    def check_readable(self, now: float) -> None:
        if now < self.unreadable_until:
            self.refused = True
            raise StorageFailed("read: EIO")


class SimFile:
    """A file whose sync takes its time; a process that dies meanwhile leaves open whether it happened."""

    def __init__(self, file: MemoryFile, path: str, medium: Medium, now: Callable[[], float]) -> None:
        self._file = file
        self._path = path
        self._medium = medium
        self._now = now
        self._size = file.size()
        self.size = file.size
        self.truncate = file.truncate
        self.close = file.close

    def append(self, pieces: list[bytes]) -> int:
        size = self._file.append(pieces)
        if size > self._size:
            self._medium.appended(self._path, self._size)
            self._size = size
        return size

    def read(self, offset: int, size: int) -> bytes:
        self._medium.check_readable(self._now())
        return self._file.read(offset, size)

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
        self.sync_directory = disk.sync_directory

    def create(self, path: str) -> SimFile:
        return SimFile(self._disk.create(path), path, self._medium, self._now)

    def open(self, path: str, *, writable: bool = False) -> SimFile:
        return SimFile(self._disk.open(path, writable=writable), path, self._medium, self._now)

    def rename(self, old: str, new: str) -> None:
        self._disk.rename(old, new)
        if old not in self._medium.disk.names:
            self._medium.renamed(old, new)

    def remove(self, path: str) -> None:
        self._disk.remove(path)
        if path not in self._medium.disk.names:
            self._medium.renamed(path, None)


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
        self.scrub = state.scrub
        self.snapshot = state.snapshot
        self.close = state.close

    def durable(self, key: bytes) -> bytes | None:
        """What would be there if power failed now, and nothing had reached the disk by itself."""
        medium = self._medium.state
        first = next((batch for batch in medium.undo if key in batch), medium.pairs)
        value: bytes | None = first.get(key)
        return value

    async def flush(self) -> None:
        before = len(self._medium.state.undo)
        await self._medium.work(self._now)
        if self._incarnation == self._medium.state.incarnation:
            del self._medium.state.undo[:before]
