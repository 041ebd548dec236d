"""The real disk behind the `Disk` and `File` ports, rooted at one node's directory.

Laws: a failed sync is never retried and believed, the file is poisoned (the fsync-retry trap: the second fsync of a failed
file answers OK while its pages are gone; Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). One
directory belongs to one process: a lock on it is held while the disk is open.

Synchronous calls stay on the loop; a sync runs inline while the disk is fast, else on one dedicated thread (see `Syncer`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from statistics import median
from time import perf_counter

from cluster.ports import DiskFull, StorageFailed
from node.storage.failpoints import failpoint, torn_wanted

LOCK = "LOCK"
PIECES_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)
JOIN_BYTES_MAX = 256 * 1024  # below this one joined buffer costs less than a long vector of pieces
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Changes when the machine restarts, and with it the page cache is gone; "" where the system does not tell."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


class DirectoryTaken(StorageFailed):
    """Another process has this directory open."""


def failed(what: str, error: OSError) -> StorageFailed:
    return (DiskFull if error.errno in FULL else StorageFailed)(f"{what}: {error.strerror}")


class Syncer:
    """Where a sync runs. Inline costs no thread switch but blocks the loop, so it is taken while the moving median of
    inline syncs stays under INLINE_S, and dropped at once after a sync of SLOW_S. On the thread every PROBE_EVERY-th sync
    goes inline as a probe, unless the thread's own median says that the disk is too slow to block the loop for."""

    INLINE_S = 0.0003
    SLOW_S = 0.01
    PROBE_MEDIAN_MAX_S = 0.005
    PROBE_EVERY = 64
    WINDOW = 9

    def __init__(self) -> None:
        self.last_s = 0.0
        self.inline = True
        self.counts = {"inline": 0, "thread": 0}
        self._inline_s: deque[float] = deque(maxlen=self.WINDOW)
        self._thread_s: deque[float] = deque(maxlen=self.WINDOW)
        self._since_probe = 0
        self._thread: ThreadPoolExecutor | None = None

    def inline_next(self) -> bool:
        if self.inline:
            return True
        self._since_probe += 1
        if self._since_probe < self.PROBE_EVERY or median(self._thread_s) > self.PROBE_MEDIAN_MAX_S:
            return False
        self._since_probe = 0
        return True

    def observe(self, inline: bool, seconds: float) -> None:
        self.last_s = seconds
        self.counts["inline" if inline else "thread"] += 1
        if not inline:
            self._thread_s.append(seconds)
            return
        self._inline_s.append(seconds)
        if seconds >= self.SLOW_S:
            self._inline_s.extend([seconds] * self.WINDOW)
        self.inline = median(self._inline_s) < self.INLINE_S

    async def run(self, descriptor: int, whole: bool) -> None:
        """fdatasync, or fsync for `whole`. OSError."""
        call = os.fsync if whole else os.fdatasync
        inline = self.inline_next()
        if inline:
            begun = perf_counter()
            call(descriptor)
            seconds = perf_counter() - begun
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, "disk-sync")
            seconds = await asyncio.get_running_loop().run_in_executor(self._thread, timed, call, descriptor)
        self.observe(inline, seconds)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)


def timed(call: Callable[[int], None], descriptor: int) -> float:
    begun = perf_counter()
    call(descriptor)
    return perf_counter() - begun


class RealFile:
    """One open file. After a failed sync, or a failed write that could not be undone, every call raises StorageFailed."""

    def __init__(self, path: Path, descriptor: int, syncer: Syncer) -> None:
        self._path = path
        self._descriptor = descriptor
        self._syncer = syncer
        self._size = os.fstat(descriptor).st_size
        self._poison = ""
        self._truncated = False

    def append(self, pieces: list[bytes]) -> int:
        self._check()
        failpoint("append.before")
        try:
            if torn_wanted:
                self._append_torn(b"".join(pieces))
            self._write_all(pieces)
        except OSError as error:
            self._undo(error)
            raise failed(f"{self._path}: write", error) from error
        failpoint("append.after")
        return self._size

    def _write_all(self, pieces: list[bytes]) -> None:
        total = sum(map(len, pieces))
        if total <= JOIN_BYTES_MAX:
            pieces = [b"".join(pieces)]
        at = self._size
        for first in range(0, len(pieces), PIECES_MAX):
            vector = pieces[first : first + PIECES_MAX]
            wanted = sum(map(len, vector))
            written = os.pwritev(self._descriptor, vector, at)
            if written < wanted:
                rest = memoryview(b"".join(vector))
                while written < wanted:
                    written += os.pwrite(self._descriptor, rest[written:], at + written)
            at += wanted
        self._size = at

    def _append_torn(self, whole: bytes) -> None:
        for cut in (1, len(whole) // 2, len(whole) - 1):
            os.pwrite(self._descriptor, whole[:cut], self._size)
            failpoint("append.torn")
        os.ftruncate(self._descriptor, self._size)

    def _undo(self, error: OSError) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
            self._truncated = True
        except OSError as second:
            self._poison = f"{self._path}: write failed ({error.strerror}) and could not be undone ({second.strerror})"

    async def sync(self) -> None:
        self._check()
        failpoint("sync.before")
        try:
            await self._syncer.run(self._descriptor, self._truncated)
        except OSError as error:
            self._poison = f"{self._path}: sync failed: {error.strerror}"
            raise StorageFailed(f"{self._path}: sync: {error.strerror}") from error  # even ENOSPC: pages may be gone
        self._truncated = False
        failpoint("sync.after")

    def read(self, offset: int, size: int) -> bytes:
        self._check()
        pieces = []
        try:
            while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
                pieces.append(piece)
                offset, size = offset + len(piece), size - len(piece)
        except OSError as error:
            raise failed(f"{self._path}: read", error) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def size(self) -> int:
        self._check()
        return self._size

    def truncate(self, size: int) -> None:
        self._check()
        assert 0 <= size <= self._size, f"{self._path}: truncate to {size} of {self._size} bytes"
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._poison = f"{self._path}: truncate failed: {error.strerror}"
            raise failed(f"{self._path}: truncate", error) from error
        self._size, self._truncated = size, True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._poison = self._poison or f"{self._path}: closed"

    def _check(self) -> None:
        if self._poison:
            raise StorageFailed(self._poison)


class RealDisk:
    """The directory `root`, made if it is missing. DirectoryTaken when another process holds it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.syncer = Syncer()
        try:
            root.mkdir(parents=True, exist_ok=True)
            sync_names(root.parent)
            self._lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise failed(f"{root}: open", error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise DirectoryTaken(f"{root}: another process has this directory open") from error

    @property
    def last_sync_s(self) -> float:
        """Seconds the last sync took."""
        return self.syncer.last_s

    def create(self, path: str) -> RealFile:
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def open(self, path: str, *, writable: bool = False) -> RealFile:
        return self._open(path, os.O_RDWR if writable else os.O_RDONLY)

    def _open(self, path: str, flags: int) -> RealFile:
        full = self._full(path)
        try:
            return RealFile(full, os.open(full, flags | os.O_CLOEXEC, 0o644), self.syncer)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError as error:
            raise failed(f"{full}: open", error) from error

    def exists(self, path: str) -> bool:
        return self._full(path).exists()

    def list(self, path: str) -> list[str]:
        full = self._full(path)
        return sorted(os.listdir(full)) if full.is_dir() else []

    def make_directory(self, path: str) -> None:
        made = self.root
        for part in PurePosixPath(path).parts:
            parent, made = made, made / part
            try:
                made.mkdir(exist_ok=True)
                sync_names(parent)
            except OSError as error:
                raise failed(f"{made}: make directory", error) from error

    def rename(self, old: str, new: str) -> None:
        try:
            os.rename(self._full(old), self._full(new))
        except OSError as error:
            raise failed(f"{self._full(old)}: rename to {new}", error) from error

    def remove(self, path: str) -> None:
        try:
            os.unlink(self._full(path))
        except OSError as error:
            raise failed(f"{self._full(path)}: remove", error) from error

    def sync_directory(self, path: str) -> None:
        try:
            sync_names(self._full(path))
        except OSError as error:
            raise StorageFailed(f"{self._full(path)}: sync directory: {error.strerror}") from error

    def close(self) -> None:
        """Gives up the directory. Files are closed by whoever opened them."""
        self.syncer.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _full(self, path: str) -> Path:
        assert not path.startswith("/") and ".." not in path.split("/"), (
            f"{path}: must stay inside the node's directory"
        )
        return self.root / path


def sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
