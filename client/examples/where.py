"""Which cluster an example talks to: that of --dir, that at the addresses given, or one of its own for as long as it runs."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from client.client import Client
from cluster.local.local_cluster import LocalCluster


@asynccontextmanager
async def connected(about: str | None, arguments: Sequence[str] | None) -> AsyncIterator[Client]:
    """A client of the cluster that `arguments` (the command line's by default) name."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--dir", help="the directory of a local cluster")
    parser.add_argument("addresses", nargs="*", help="host:port of some nodes")
    given = parser.parse_args(arguments)
    if given.dir or given.addresses:
        async with Client.from_directory(given.dir) if given.dir else Client(given.addresses) as client:
            yield client
        return
    async with LocalCluster(nodes=3) as cluster, Client(list(cluster.addresses.values())) as client:
        yield client
