"""Raw callers beside the load: each stays with one replica and puts every answer it gives on record (`stores.RawStore`).

A client that follows the leader asks the right node, and so hardly ever notices what the wrong one would have said. These do:
a deposed leader that still answers, a failure that was none, a sequence that is applied twice all show in the history.
"""

from __future__ import annotations

import asyncio
import random

from chaos.sim.stores import RawStore
from chaos.workloads.kv import KvWorkload

READ_PERCENT = 65
CAS_PERCENT = 12


class Caller:
    """One of them, on one shard, with an operation at a time. `pause_s` is the mean between two."""

    def __init__(self, name: str, store: RawStore, shard: int, chance: random.Random, pause_s: float) -> None:
        self._name, self._store, self._shard, self._chance, self._pause_s = name, store, shard, chance, pause_s

    async def run(self, workload: KvWorkload) -> None:
        """Until the workload is stopped. Every invocation has its answer when this returns."""
        loop = asyncio.get_running_loop()
        process, number = workload.new_process(), 0
        while not await workload.stopped_within(self._chance.expovariate(1 / self._pause_s)):
            if loop.time() < workload.quiet_until:
                continue
            number += 1
            draw = self._chance.randrange(100)
            f = "get" if draw < READ_PERCENT else "cas" if draw < READ_PERCENT + CAS_PERCENT else "put"
            answer = await workload.operate(process, self._shard, f, f"{self._name}.{number}", self._store)
            if answer is not None and answer.type == "info":
                process = workload.new_process()
