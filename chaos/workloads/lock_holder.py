"""A process of its own that holds locks, so that it can be paused or killed while it does: `python -m chaos.workloads.lock_holder`.

The first line on stdin says what it is (`Part`); it writes its part of the history, says on stdout once a second how far it is, and
ends when stdin does, after the turns that are under way.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from chaos.history import Recorder, header
from chaos.workloads.lock import LockOptions, LockWorkload
from chaos.workloads.lock_store import ClientLocks
from client.client import Client

PROGRESS_S = 1.0


class Part(msgspec.Struct):
    """`start_ns`: when the run began, by the machine's monotonic clock."""

    addresses: list[str]
    history: str
    start_ns: int
    seed: int
    shards: int
    options: LockOptions


class Progress(msgspec.Struct):
    operations: int
    unknown: int
    acquisitions: int


async def hold(part: Part) -> None:
    loop = asyncio.get_running_loop()
    head = header(part.seed, {}, {})
    with Recorder(Path(part.history), head, start=part.start_ns, buffered=False) as recorder:
        async with Client(part.addresses) as client:
            locks = ClientLocks(client)
            feed = loop.create_task(locks.feed.run(), name="feeds")
            workload = LockWorkload(recorder, [locks], part.shards, part.seed, part.options)
            await loop.connect_read_pipe(lambda: _Stop(workload), sys.stdin)
            talk = loop.create_task(_talk(workload), name="progress")
            try:
                await workload.run()
            finally:
                for task in (feed, talk):
                    task.cancel()
                await asyncio.gather(feed, talk, return_exceptions=True)


class _Stop(asyncio.Protocol):
    def __init__(self, workload: LockWorkload) -> None:
        self._workload = workload

    def connection_lost(self, error: Exception | None) -> None:
        self._workload.stop()


async def _talk(workload: LockWorkload) -> None:
    while True:
        told = Progress(workload.operations, workload.answers["info"], workload.acquisitions)
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        sys.stdout.flush()
        await asyncio.sleep(PROGRESS_S)


if __name__ == "__main__":
    asyncio.run(hold(msgspec.json.decode(sys.stdin.readline(), type=Part)))
