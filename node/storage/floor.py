"""`python -m node.storage.floor --seconds S`: what our own log alone can do, the floor that a cluster is measured against.

Append, CRC and fdatasync in rounds of 100 single-put records (random keys of 16 bytes, values of 100), one process, one
file after the other. Prints one JSON object: operations_per_s, rounds_per_s, sync_ms_median, bytes_per_operation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from cluster.limits import DEFAULT
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry
from cluster.types import EntryKind
from node.storage.disk import RealDisk, boot_id
from node.storage.log import Log, ShardRound

BATCH = 100
KEY_BYTES = 16
VALUE_BYTES = 100


async def measure(seconds: float, directory: Path) -> dict[str, float]:
    """Runs for about `seconds` in a fresh directory below `directory`, and removes it."""
    with tempfile.TemporaryDirectory(prefix="floor-", dir=directory) as root:
        disk = RealDisk(Path(root))
        log, _ = await Log.open(
            disk, cluster_id=b"floor", node="floor", boot_id=boot_id(), limits=DEFAULT, discard_at_or_below=None
        )
        log.begin(1, 1, Configuration((1,)), fresh=True)
        result = await _rounds(log, seconds)
        await log.close()
        disk.close()
    return result


async def _rounds(log: Log, seconds: float) -> dict[str, float]:
    value, index, rounds = bytes(VALUE_BYTES), 0, 0
    syncs: list[float] = []
    begun = perf_counter()
    while (elapsed := perf_counter() - begun) < seconds:
        keys = os.urandom(BATCH * KEY_BYTES)
        entries = [
            Entry(index + n + 1, 1, EntryKind.NORMAL, keys[n * KEY_BYTES : (n + 1) * KEY_BYTES] + value)
            for n in range(BATCH)
        ]
        log.append([ShardRound(1, 1, entries, None, None)])
        await log.sync()
        syncs.append(log.last_sync_s)
        index += BATCH
        rounds += 1
        if rounds % 64 == 0:
            log.release({1: (1, index)})
    return {
        "operations_per_s": round(index / elapsed, 1),
        "rounds_per_s": round(rounds / elapsed, 1),
        "sync_ms_median": round(median(syncs) * 1000, 3),
        "bytes_per_operation": round(log.total_bytes / index, 1),
        "batch": BATCH,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m node.storage.floor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="on the disk to be measured; default: here")
    options = parser.parse_args()
    if options.seconds <= 0 or not options.dir.is_dir():
        parser.error("--seconds must be positive and --dir a directory")
    json.dump(asyncio.run(measure(options.seconds, options.dir)), sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
