"""A watcher beside the load: it must be told every acknowledged change once and in order, through all faults.

Where the cluster says that history is gone (Compacted), it goes on from the oldest place there is, and what lies between
is excused. Changes whose outcome the writer never learnt may be told or not.
"""

from __future__ import annotations

import asyncio

from chaos.history import Operation
from client.kv import Kv
from client.watch import Watch, WatchEvent
from cluster.errors import Code, TenfoldError
from cluster.ring.ring import shard_of

PAUSE_S = 0.1
CAUGHT_UP_S = 30.0
NOBODY_THERE = (Code.DEADLINE_EXCEEDED, Code.NOT_LEADER, Code.UNAVAILABLE)
"""So a watch ends that cannot begin or go on within its deadline."""


class Watcher:
    """`breaches` are for people. `run` belongs to the process of the client whose `kv` it is."""

    def __init__(self, shards: int) -> None:
        self.breaches: list[str] = []
        self.started = asyncio.Event()
        self.events = 0
        self.compactions = 0
        self._shards = shards
        self._seen: dict[tuple[str, int], str] = {}  # (key, version) -> value
        self._last: dict[int, int] = {}
        self._excused: dict[
            int, list[tuple[int, int]]
        ] = {}  # shard -> may be missing: behind the first, up to the second

    async def run(self, kv: Kv) -> None:
        """Until it is cancelled."""
        token: str | None = None
        while True:
            watch = kv.watch(prefix=b"", token=token)
            try:
                await watch.start()
                self.started.set()
                token = watch.token
                await self._follow(watch)
            except TenfoldError as error:
                token = self._after(error, watch, token)
                await asyncio.sleep(PAUSE_S)
            finally:
                await watch.stop()

    async def _follow(self, watch: Watch) -> None:
        async for event in watch:
            self._take(event)

    def _after(self, error: TenfoldError, watch: Watch, token: str | None) -> str | None:
        """The token to go on with."""
        if error.code is Code.COMPACTED:
            self.compactions += 1
            shard, floor = int(str(error.details["shard"])), int(str(error.details["floor"]))
            self._excused.setdefault(shard, []).append((self._last.get(shard, 0), floor))
            return str(error.details["oldest_token"])
        if error.code not in NOBODY_THERE:
            self.breaches.append(f"the watch ended: {error!r}")
        return watch.token if token is not None else None

    def _take(self, event: WatchEvent) -> None:
        self.events += 1
        key, version, shard = event.key.decode(), event.version, shard_of(event.key, self._shards)
        if version < self._last.get(shard, 0):
            self.breaches.append(f"the watch tells version {version} of {key} after {self._last[shard]}")
        if (key, version) in self._seen:
            self.breaches.append(f"the watch tells version {version} of {key} twice")
        self._last[shard] = version
        self._seen[key, version] = event.value.decode()

    def behind(self, applied: dict[str, int]) -> str:
        """The first key whose version is acknowledged and not told; "" when all are."""
        for key, version in applied.items():
            if (key, version) not in self._seen and not self._may_miss(key, version):
                return f"the watch was not told version {version} of {key}"
        return ""

    def _may_miss(self, key: str, version: int) -> bool:
        gaps = self._excused.get(shard_of(key.encode(), self._shards), ())
        return any(place < version <= floor for place, floor in gaps)

    def check(self, operations: list[Operation]) -> list[str]:
        """Every acknowledged write of the history against what was told; and none took effect twice, acknowledged or not: each
        has a value of its own."""
        wrong = self._doubled({(each.key, each.value): None for each in operations if each.writes})
        for each in operations:
            if not (each.writes and each.type == "ok") or self._may_miss(each.key, each.version or 0):
                continue
            told = self._seen.get((each.key, each.version or 0))
            if told != each.value:
                wrong.append(f"the watch told {told!r} for version {each.version} of {each.key}, not {each.value!r}")
        return wrong[:10]

    def _doubled(self, writes: dict[tuple[str, str | None], None]) -> list[str]:
        wrong: list[str] = []
        first: dict[tuple[str, str], int] = {}
        for (key, version), value in self._seen.items():
            if (key, value) in writes and first.setdefault((key, value), version) != version:
                wrong.append(
                    f"the watch told {value!r} of {key} at {first[key, value]} and at {version}: one write, and two effects"
                )
        return wrong
