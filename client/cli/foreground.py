"""`up --foreground`: the command stays with its nodes and takes them along when it goes."""

from __future__ import annotations

import asyncio
import signal

from client.cli.output import note
from cluster.local.local_cluster import LocalCluster

POLL_S = 0.5


def catch_interrupts() -> asyncio.Event:
    """Set by SIGINT, SIGTERM or SIGHUP, which from now on end nothing by themselves. Call it before telling anyone that
    the cluster is up, since an answer to that may be an interrupt."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def stay(cluster: LocalCluster, asked: asyncio.Event) -> None:
    """Returns once `asked` is set, or no node runs any more. The caller stops what is left."""
    note("running in the foreground; interrupt to stop the nodes")
    ended: set[str] = set()
    while cluster.layout.exists():
        try:
            async with asyncio.timeout(POLL_S):
                await asked.wait()
            return
        except TimeoutError:
            running = cluster.launcher.processes(cluster.nodes)
            for node in sorted(set(cluster.nodes) - set(running) - ended):
                note(f"{node} has ended")
            ended = set(cluster.nodes) - set(running)
            if not running:
                note("all nodes have ended")
                return
