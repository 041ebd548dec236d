"""One command at a time starts or stops the nodes of a directory.

flock, so that the kernel releases it when its holder dies, by whatever death. Nodes never inherit it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.errors import Code, TenfoldError

WAIT_S = 60.0
POLL_S = 0.02


@asynccontextmanager
async def directory_lock(path: Path, wait_s: float = WAIT_S) -> AsyncIterator[None]:
    """Holds the lock file `path`, whose directory must exist. TenfoldError Overloaded if another holds it all the time."""
    deadline = asyncio.get_running_loop().time() + wait_s
    while (held := _try(path)) is None:
        if asyncio.get_running_loop().time() > deadline:
            raise TenfoldError(Code.OVERLOADED, f"{path.parent}: another command is starting or stopping nodes here")
        await asyncio.sleep(POLL_S)
    try:
        yield
    finally:
        os.close(held)


def _try(path: Path) -> int | None:
    """A descriptor that holds the lock, or None. A lock on a file that was purged meanwhile is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
