"""The public face: `from tenfold import Client, LocalCluster`, and the `tenfold` command put together from the groups.

What is imported here is light; what is heavy (grpc, matplotlib) is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    from client.client import Client
    from client.sync import SyncClient
    from cluster.local.local_cluster import LocalCluster

__all__ = ["Client", "LocalCluster", "SyncClient", "main"]

_LAZY = {"Client": "client.client", "SyncClient": "client.sync", "LocalCluster": "cluster.local.local_cluster"}

_GROUPS = {
    "node": ("client.cli.members", "Nodes join the cluster, are drained, and leave it."),
    "kv": ("client.cli.kv", "Read and write keys; load and dump files."),
    "lock": ("client.cli.lock", "Hold names across processes; run a command while holding."),
    "chaos": ("chaos.cli", "Break a cluster on purpose, and judge what it did."),
    "bench": ("client.bench.cli", "Measure a cluster."),
    "sim": ("chaos.sim.cli", "Run whole clusters in virtual time, faults drawn from a seed."),
}
COMPLETION_VARIABLE = "_TENFOLD_COMPLETE"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """The `tenfold` command."""
    from client.cli.output import run_app

    sys.exit(run_app(compose(sys.argv[1:]), name="tenfold"))


def compose(arguments: Sequence[str]) -> typer.Typer:
    """The command line. Of the groups only the one that `arguments` name is imported, so that every command starts fast;
    the others are there by name. Shell completion needs all."""
    import typer

    from client.cli import actions, cluster, diagnosis, moves

    app = typer.Typer(
        name="tenfold",
        help="A replicated, sharded cluster that you can start, load, break and trust.",
        no_args_is_help=True,
    )
    for commands in (cluster, actions, moves, diagnosis):
        app.add_typer(commands.app)
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, (module, purpose) in _GROUPS.items():
        needed = wanted == name or COMPLETION_VARIABLE in os.environ
        group = import_module(module).app if needed else typer.Typer()
        app.add_typer(group, name=name, help=purpose, no_args_is_help=True)
    return app


if __name__ == "__main__":
    main()
