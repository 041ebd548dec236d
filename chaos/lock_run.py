"""The experiment `lock`: holders in processes of their own, nodes and holders that are killed and paused, one merged history."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from chaos.history import Header, Recorder, merge
from chaos.nemesis.pauses import PauseNemesis
from chaos.nemesis.schedule import plan
from chaos.runner import Tell, under_load
from chaos.workloads.lock import LockOptions
from chaos.workloads.lock_holders import LockHolders
from chaos.workloads.lock_store import ClientLocks
from client.client import Client
from cluster.local.local_cluster import LocalCluster

PARTS = "parts"
OPTIONS = LockOptions(lanes=2, clients_per_lane=1, rotate_s=10.0, turns_per_s=40.0, ttl_ms=(100, 1500), hold_s=0.1)
"""Of each holder."""


async def run_locks(
    cluster: LocalCluster, head: Header, shards: int, duration_s: float, *, fencing: bool, into: Path, tell: Tell
) -> None:
    """Load and faults for so long, then healing and the last reads; the history goes to the file `into`. NeverHealed."""
    parts = into.parent / PARTS
    parts.mkdir()
    start_ns = time.monotonic_ns()
    try:
        async with AsyncExitStack() as stack:
            recorder = stack.enter_context(Recorder(parts / "main.jsonl", head, start=start_ns))
            addresses = list(cluster.addresses.values())
            client = await stack.enter_async_context(Client(addresses))
            locks = ClientLocks(client, recorder)
            feed = asyncio.create_task(locks.feed.run(), name="feeds")
            stack.callback(feed.cancel)
            options = replace(OPTIONS, fencing=fencing)
            holders = LockHolders(recorder, locks, addresses, shards, head.seed, parts, start_ns, options)
            nemesis = PauseNemesis(cluster, recorder)
            await nemesis.start()
            work = nemesis.run(plan(head.seed, duration_s), duration_s)
            await under_load(cluster, holders, recorder, nemesis, work, tell)
    finally:
        merge(head, sorted(parts.glob("*.jsonl")), into)
