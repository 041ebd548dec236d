"""The client of a cluster: `async with Client(["127.0.0.1:7400"]) as client: await client.kv.put("key", "value")`.

It finds the nodes by itself from any address, follows the shard map, joins concurrent operations into few calls, and retries within
the deadline under a session, so that what it resends applies once. One client per program is enough; it belongs to one event loop.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from client.arguments import addresses as checked_addresses
from client.arguments import seconds
from client.batcher import Batcher
from client.kv import Kv
from client.lock import Lock
from client.router import Router
from client.surroundings import Surroundings
from client.tasks import LoopClock, Monotonic, Tasks
from cluster.errors import invalid
from cluster.limits import DEFAULT, Limits
from cluster.local.layout import Layout
from cluster.ports import Dial, Random
from cluster.wire import channel


class Client:
    """`addresses` are host:port of some nodes. `deadline_s` bounds each operation that names no other. Entering raises
    TenfoldError Unreachable if no node can be reached in that time, DeadlinePassed if it was too short to ask them all."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        deadline_s: float = DEFAULT.deadline_ms_default / 1000,
        principal: str = "",
        dial: Dial = channel.dial,
        clock: Monotonic | None = None,
        random: Random | None = None,
        limits: Limits = DEFAULT,
    ) -> None:
        if len(principal) > limits.principal_bytes_max:
            raise invalid("principal", f"{len(principal)} characters, at most {limits.principal_bytes_max}")
        if seconds(deadline_s, "deadline_s", limits) < 0:
            raise invalid("deadline_s", f"{deadline_s:g}, must not be negative")
        seeds = checked_addresses(addresses)
        clock, identity = clock or LoopClock(), random or random_module.SystemRandom()
        random = random or random_module.Random()
        self._tasks = Tasks()
        self._router = Router(seeds, dial, self._tasks, clock, random, limits)
        self._batcher = Batcher(self._router, self._tasks, clock, random, limits, principal)
        self._deadline_s = deadline_s
        around = Surroundings(self._router, self._batcher, self._tasks, clock, random, limits, deadline_s, identity)
        self.kv = Kv(around)
        self.lock = Lock(around, self.kv)

    @classmethod
    def from_directory(cls, directory: str | Path = ".tenfold", *, deadline_s: float | None = None) -> Client:
        """Of the local cluster in `directory`. TenfoldError InvalidArgument if there is none."""
        layout = Layout(directory)
        cluster = layout.read()
        runs = {entry.node: layout.read_run(entry.node) for entry in cluster.nodes}
        addresses = [run.address if (run := runs[entry.node]) else entry.address for entry in cluster.nodes]
        return cls(addresses, deadline_s=DEFAULT.deadline_ms_default / 1000 if deadline_s is None else deadline_s)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        try:
            await self._router.start(self._deadline_s)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends what is still under way: what was never sent fails by ShuttingDown, the rest by UnknownOutcome."""
        self._batcher.close()
        await self._tasks.close()
        await self._router.close()

    @property
    def cluster_id(self) -> bytes:
        return self._router.cluster_id

    @property
    def calls(self) -> int:
        """Calls sent so far; with `requests`, the measure of how well operations are joined."""
        return self._batcher.calls

    @property
    def requests(self) -> int:
        """Sub-requests sent so far."""
        return self._batcher.requests
