"""One run against a running cluster: load, faults, healing, reading back. What happened is in the history, and nowhere else.

Two phases: safety under chaos, then healing. Whatever happens in the first, the second starts every killed node again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from chaos.history import EventType, Recorder
from chaos.nemesis.convergence import Watched, converged
from chaos.nemesis.kill import KillNemesis, Victims
from chaos.nemesis.schedule import plan
from chaos.workloads.kv import KvOptions, KvWorkload, Store
from client.client import Client

CLIENTS = 4
HEAL_TIMEOUT_S = 60.0
PROGRESS_S = 5.0

Tell = Callable[[str], None]
"""Takes one line of progress, for a human."""


async def open_stores(stack: AsyncExitStack, addresses: Sequence[str], count: int = CLIENTS) -> list[Store]:
    """The key-value facades of so many clients, each with connections and a session of its own."""
    return [(await stack.enter_async_context(Client(list(addresses)))).kv for _ in range(count)]


class Workload(Protocol):
    """What a run needs of one."""

    @property
    def operations(self) -> int:
        """Completed so far."""
        ...

    @property
    def answers(self) -> Mapping[EventType, int]: ...

    @property
    def keys(self) -> Sequence[tuple[int, str]]:
        """(shard, key) of what is read back."""
        ...

    async def run(self) -> None: ...

    def stop(self) -> None: ...

    async def read_back(self) -> int: ...


class Nemesis(Protocol):
    """What a run needs of one, besides the work it does in it."""

    @property
    def so_far(self) -> str:
        """What it has done, in a few words."""
        ...

    async def heal(self) -> None: ...


async def kill_under_load(
    cluster: Victims, stores: Sequence[Store], recorder: Recorder, shards: int, seed: int, duration_s: float, tell: Tell
) -> None:
    """`under_load` with nodes that are killed for `duration_s` seconds, and started again."""
    nemesis = KillNemesis(cluster, recorder)
    await nemesis.start()
    work = nemesis.run(plan(seed, duration_s), duration_s)
    workload = KvWorkload(recorder, stores, shards, seed, KvOptions())
    await under_load(cluster, workload, recorder, nemesis, work, tell)


async def under_load(
    cluster: Watched,
    workload: Workload,
    recorder: Recorder,
    nemesis: Nemesis,
    work: Coroutine[Any, Any, None],
    tell: Tell,
) -> None:
    """Load while `work`, the nemesis's, is done; then healing, convergence and the final reads.

    NeverHealed if the cluster did not come back; the history then ends without final reads.
    """
    load = asyncio.create_task(workload.run(), name="load")
    talk = asyncio.create_task(report_progress(workload, nemesis, tell), name="progress")
    try:
        await _with(load, work)
    finally:
        talk.cancel()
        workload.stop()
        try:
            await nemesis.heal()
        finally:
            await load
    tell("healing: every node is there")
    await converged(cluster, HEAL_TIMEOUT_S)
    recorder.fault("ok", "healed")
    tell(f"healed; reading back {len(workload.keys)} keys")
    await workload.read_back()


async def _with(load: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; ends with the load's exception should that fail first."""
    task = asyncio.create_task(work)
    load.add_done_callback(lambda _: task.cancel())
    try:
        await task
    except asyncio.CancelledError:
        if load.done() and not load.cancelled():
            load.result()
        raise
    finally:
        task.cancel()


async def report_progress(workload: Workload, nemesis: Nemesis, tell: Tell) -> None:
    """Tells every few seconds how far the run is."""
    before = 0
    while True:
        await asyncio.sleep(PROGRESS_S)
        rate = (workload.operations - before) / PROGRESS_S
        before = workload.operations
        told = f"{workload.operations} operations ({rate:.0f} per s), {workload.answers['info']} unknown"
        tell(f"{told}, {nemesis.so_far}")
