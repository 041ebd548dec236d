"""In-memory twins of the disk and the state engine, shipped for tests and the simulator.

`ForgettingDisk` is the medium: what lies on it after a crash is what was synced, plus a random part of what was not. A
name is undone unless its directory was synced, the last surviving write is torn, and a failed sync loses its data for
good while later syncs answer OK, as real disks do. `MemoryDisk` is a `Disk` on it for one incarnation of a node: after
`crash` it has no effect any more. `MemoryState` does the same for a `State`, which keeps a prefix of its batches.
SIGKILL alone proves nothing about fsync, since the page cache survives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sortedcontainers import SortedDict

from cluster.ports import DiskFull, Random, StorageFailed


@dataclass(slots=True)
class Inode:
    """One file: what processes see, what is durable, and the writes between the two: (offset, data) or a cut to a size."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, target: bytearray, offset: int, data: bytes | None) -> None:
        if data is None:
            del target[offset:]
            return
        if len(target) < offset:
            target.extend(bytes(offset - len(target)))
        target[offset : offset + len(data)] = data


NameChange = tuple[str | None, str | None, Inode | None]
"""(name removed, name added, what it names)."""


class ForgettingDisk:
    """The medium. Faults: `fail_sync_in` n lets the n-th sync from now fail with EIO, `capacity` bytes end in DiskFull."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.fail_sync_in: int | None = None
        self.capacity: int | None = None
        self.syncs = 0
        self.names: dict[str, Inode] = {}
        self.directories: set[str] = {""}
        self._durable_names: dict[str, Inode] = {}
        self._changes: list[NameChange] = []

    def attach(self) -> MemoryDisk:
        """The disk as the next incarnation of the node sees it."""
        return MemoryDisk(self)

    def used_bytes(self) -> int:
        return sum(len(inode.data) for inode in self.names.values())

    def crash(self, random: Random, *, keep: bool = True) -> None:
        """Power is cut. Of unsynced writes and names nothing survives, or with `keep` a random part: per file a prefix of
        the writes, the last of them torn at a random byte or followed by zeros; of the names any subset."""
        self.incarnation += 1
        names = dict(self._durable_names)
        for removed, added, inode in self._changes:
            if keep and random.randrange(0, 2):
                if removed is not None:
                    names.pop(removed, None)
                if added is not None and inode is not None:
                    names[added] = inode
        for inode in {id(each): each for each in [*self.names.values(), *names.values()]}.values():
            if keep:
                self._keep_some(inode, random)
            inode.data = bytearray(inode.durable)
            inode.unsynced.clear()
        self.names, self._durable_names = names, dict(names)
        self._changes.clear()

    def _keep_some(self, inode: Inode, random: Random) -> None:
        kept = random.randrange(0, len(inode.unsynced) + 1)
        for position, (offset, data) in enumerate(inode.unsynced[:kept]):
            if data is not None and position == kept - 1:
                whole = len(data)
                data = data[: random.randrange(0, whole + 1)]
                if random.randrange(0, 4) == 0:  # the size was durable, the bytes were not
                    data += bytes(whole - len(data))
            inode.write(inode.durable, offset, data)

    def flip(self, path: str, bit: int) -> None:
        """Turns one bit, counted from the start of the file, as seen and as stored."""
        inode = self.names[path]
        for target in (inode.data, inode.durable):
            if bit // 8 < len(target):
                target[bit // 8] ^= 1 << bit % 8

    # -- what an incarnation does --------------------------------------------------------------------------------------

    def change_name(self, removed: str | None, added: str | None, inode: Inode | None) -> None:
        if removed is not None:
            del self.names[removed]
        if added is not None and inode is not None:
            self.names[added] = inode
        self._changes.append((removed, added, inode))

    def sync_names(self, directory: str) -> None:
        left: list[NameChange] = []
        for removed, added, inode in self._changes:
            if parent_of(added or removed or "") != directory:
                left.append((removed, added, inode))
                continue
            if removed is not None:
                self._durable_names.pop(removed, None)
            if added is not None and inode is not None:
                self._durable_names[added] = inode
        self._changes = left

    def sync(self, inode: Inode) -> None:
        self.syncs += 1
        if self.fail_sync_in is not None:
            self.fail_sync_in -= 1
            if self.fail_sync_in == 0:
                self.fail_sync_in = None
                inode.unsynced.clear()  # the pages count as clean now, and were never written
                raise StorageFailed("sync: EIO")
        for offset, data in inode.unsynced:
            inode.write(inode.durable, offset, data)
        inode.unsynced.clear()


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


class MemoryFile:
    def __init__(self, medium: ForgettingDisk, inode: Inode) -> None:
        self._medium = medium
        self._inode = inode
        self._incarnation = medium.incarnation
        self._poison = ""

    @property
    def _alive(self) -> bool:
        if self._poison:
            raise StorageFailed(self._poison)
        return self._incarnation == self._medium.incarnation

    def append(self, pieces: list[bytes]) -> int:
        data, inode, medium = b"".join(pieces), self._inode, self._medium
        if self._alive:
            if medium.capacity is not None and medium.used_bytes() + len(data) > medium.capacity:
                raise DiskFull("write: no space left")
            inode.unsynced.append((len(inode.data), data))
            inode.data += data
        return len(inode.data)

    async def sync(self) -> None:
        if self._alive:
            try:
                self._medium.sync(self._inode)
            except StorageFailed as error:
                self._poison = str(error)
                raise

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._inode.data[offset : offset + size]) if self._alive else b""

    def size(self) -> int:
        return len(self._inode.data) if self._alive else 0

    def truncate(self, size: int) -> None:
        if self._alive:
            del self._inode.data[size:]
            self._inode.unsynced.append((size, None))

    def close(self) -> None:
        self._poison = self._poison or "closed"


class MemoryDisk:
    """A `Disk` on a medium, by default on one of its own."""

    def __init__(self, medium: ForgettingDisk | None = None) -> None:
        self.medium = medium or ForgettingDisk()
        self._incarnation = self.medium.incarnation

    @property
    def _alive(self) -> bool:
        return self._incarnation == self.medium.incarnation

    def create(self, path: str) -> MemoryFile:
        medium = self.medium
        if path in medium.names and self._alive:
            raise FileExistsError(path)
        if parent_of(path) not in medium.directories:
            raise FileNotFoundError(parent_of(path))
        inode = Inode()
        if self._alive:
            medium.change_name(None, path, inode)
        return self._file(inode)

    def open(self, path: str, *, writable: bool = False) -> MemoryFile:
        if path not in self.medium.names:
            raise FileNotFoundError(path)
        return self._file(self.medium.names[path])

    def _file(self, inode: Inode) -> MemoryFile:
        file = MemoryFile(self.medium, inode)
        file._incarnation = self._incarnation
        return file

    def exists(self, path: str) -> bool:
        return path in self.medium.names or path in self.medium.directories

    def list(self, path: str) -> list[str]:
        inside = [*self.medium.names, *(self.medium.directories - {""})]
        return sorted(name.rpartition("/")[2] for name in inside if parent_of(name) == path)

    def make_directory(self, path: str) -> None:
        parts = path.split("/")
        if self._alive and path:
            self.medium.directories.update("/".join(parts[: count + 1]) for count in range(len(parts)))

    def rename(self, old: str, new: str) -> None:
        if self._alive:
            self.medium.change_name(old, new, self.medium.names[old])

    def remove(self, path: str) -> None:
        if self._alive:
            self.medium.change_name(path, None, None)

    def sync_directory(self, path: str) -> None:
        if self._alive:
            self.medium.sync_names(path)


class ForgettingState:
    """The medium of a `MemoryState`: the pairs, and how to take back each batch since the last flush."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.stalled = False
        self.pairs: SortedDict = SortedDict()
        self.undo: list[dict[bytes, bytes | None]] = []

    def attach(self) -> MemoryState:
        return MemoryState(self)

    def crash(self, random: Random, *, keep: bool = True) -> None:
        """A random prefix of the batches since the last flush survives; none without `keep`."""
        self.incarnation += 1
        kept = random.randrange(0, len(self.undo) + 1) if keep else 0
        while len(self.undo) > kept:
            self.apply(self.undo.pop())
        self.undo.clear()

    def apply(self, batch: Mapping[bytes, bytes | None]) -> None:
        for key, value in batch.items():
            if value is None:
                self.pairs.pop(key, None)
            else:
                self.pairs[key] = value

    def write(self, batch: Mapping[bytes, bytes | None]) -> None:
        self.undo.append({key: self.pairs.get(key) for key in batch})
        self.apply(batch)


class MemoryState:
    """A `State` on a medium, by default on one of its own."""

    def __init__(self, medium: ForgettingState | None = None) -> None:
        self.medium = medium or ForgettingState()
        self._incarnation = self.medium.incarnation

    @property
    def _alive(self) -> bool:
        return self._incarnation == self.medium.incarnation

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self.medium.pairs.get(key)
        return value

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        pairs = self.medium.pairs
        keys = pairs.irange(start, end, inclusive=(True, False), reverse=reverse)
        return iter([(key, pairs[key]) for key in keys])

    def write(self, batch: Mapping[bytes, bytes | None]) -> bool:
        if self.medium.stalled:
            return False
        if self._alive:
            self.medium.write(batch)
        return True

    def delete_range(self, start: bytes, end: bytes) -> None:
        if self._alive:
            keys = list(self.medium.pairs.irange(start, end, inclusive=(True, False)))
            self.medium.write(dict.fromkeys(keys))

    async def flush(self) -> None:
        if self._alive:
            self.medium.undo.clear()

    async def scrub(self, bytes_per_s: int) -> int:
        """Memory does not rot."""
        return sum(len(key) + len(value) for key, value in self.medium.pairs.items())

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(SortedDict(self.medium.pairs))

    def close(self) -> None:
        self._incarnation = -1


class MemorySnapshot:
    def __init__(self, pairs: SortedDict) -> None:
        self._pairs = pairs

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in self._pairs.irange(start, end, inclusive=(True, False)):
            yield key, self._pairs[key]

    def close(self) -> None:
        self._pairs = SortedDict()
