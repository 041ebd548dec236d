"""A reader of stale values: what a replica says about its age has to be true.

A stale read that answers "at most S milliseconds old" must show every write of the key that was acknowledged S milliseconds
before the read was asked for. S is measured by the replica's clock, which may drift as declared.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chaos.history import Operation
from client.kv import Kv
from cluster.errors import TenfoldError

PAUSE_S = 0.15
DEADLINE_S = 2.0
DRIFT = 1.1
SLACK_S = 0.002
"""The bound is told in whole milliseconds."""


class Seen(NamedTuple):
    asked_s: float
    key: str
    version: int
    stale_ms: int


class StaleReader:
    """`run` belongs to the process of the client whose `kv` it is. Times are true ones, from `now`."""

    def __init__(self, now: Callable[[], float], chance: random.Random) -> None:
        self.seen: list[Seen] = []
        self.operations = 0
        self._now = now
        self._chance = chance

    async def run(self, kv: Kv, keys: Callable[[], Sequence[tuple[int, str]]]) -> None:
        """Until it is cancelled. Mostly the keys that are being written, which are the last ones."""
        while True:
            await asyncio.sleep(PAUSE_S * self._chance.expovariate(1.0))
            known = keys()
            if not known:
                continue
            _, key = known[self._chance.randrange(len(known))]
            asked_s = self._now()
            self.operations += 1
            try:
                found = await kv.get(key, consistency="stale", deadline_s=DEADLINE_S)
            except TenfoldError:
                continue  # a read that failed has promised nothing
            if found is not None:
                self.seen.append(Seen(asked_s, key, found.version, found.stale_ms))

    def check(self, operations: Sequence[Operation]) -> list[str]:
        """The reads that were older than they said."""
        writes: dict[str, list[tuple[int, int]]] = {}  # key -> (completed, version)
        for each in operations:
            if each.writes and each.type == "ok" and each.completed_ns is not None:
                writes.setdefault(each.key, []).append((each.completed_ns, each.version or 0))
        wrong = []
        for read in self.seen:
            owed_ns = (read.asked_s - DRIFT * read.stale_ms / 1000 - SLACK_S) * 1e9
            owed = max((version for at, version in writes.get(read.key, ()) if at <= owed_ns), default=0)
            if owed > read.version:
                wrong.append(
                    f"a stale read of {read.key} asked at {read.asked_s:.3f} says it is at most {read.stale_ms} ms old and shows "
                    f"version {read.version}, but {owed} was acknowledged before that"
                )
        return wrong[:5]
