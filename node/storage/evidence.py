"""A damaged log is kept aside before anything of it is released.

A quarantined replica appends nothing and pins no segment, or the log would grow for ever; but until it is rebuilt from its
peers, what can still be read of its log may be the only copy of something. So the first open that finds a shard
quarantined copies every segment into `damaged/`, once for each replica that joins; the first one that finds all of them
replaced deletes the copies.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.ports import Disk, StorageFailed
from node.storage.identity import Identity, Sealed
from node.storage.segment import Segment

DIRECTORY = "damaged"
COPY_BYTES = 1 << 20


async def keep_evidence(
    disk: Disk, identity: Identity, quarantined: Iterable[tuple[int, int]], segments: Iterable[Segment]
) -> int:
    """Copies the segments unless all of `quarantined`, by (shard, replica), were known before; how many were copied.
    Durable when it returns."""
    replicas = {f"{shard}:{replica}" for shard, replica in quarantined}
    if not replicas:
        for name in disk.list(DIRECTORY):
            disk.remove(f"{DIRECTORY}/{name}")
        return 0
    marker = Sealed(disk, f"{DIRECTORY}/replicas")
    try:
        known = set((marker.read(identity) or b"").decode().split())
    except StorageFailed:  # then it is copied once more
        known = set()
    if replicas <= known:
        return 0
    disk.make_directory(DIRECTORY)
    copied = 0
    for segment in segments:
        await _copy(disk, segment.path, f"{DIRECTORY}/{segment.path.rpartition('/')[2]}")
        copied += 1
    await marker.write(identity, " ".join(sorted(replicas | known)).encode())
    return copied


async def _copy(disk: Disk, source: str, target: str) -> None:
    if disk.exists(target):
        disk.remove(target)
    read, written = disk.open(source), disk.create(target)
    try:
        for offset in range(0, read.size(), COPY_BYTES):
            written.append([read.read(offset, COPY_BYTES)])
        await written.sync()
    finally:
        read.close()
        written.close()
