"""The public face: `from tenfold import Client, LocalCluster`, and the `tenfold` command put together from the groups.

What is imported here is light; what is heavy (grpc, matplotlib) is imported by the command that needs it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.client import Client
    from client.sync import SyncClient
    from cluster.local.local_cluster import LocalCluster

__all__ = ["Client", "LocalCluster", "SyncClient", "main"]

_LAZY = {"Client": "client.client", "SyncClient": "client.sync", "LocalCluster": "cluster.local.local_cluster"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """The `tenfold` command."""
    import typer

    from client.cli import cluster, diagnosis
    from client.cli.output import run_app

    app = typer.Typer(
        name="tenfold",
        help="A replicated, sharded cluster that you can start, load, break and trust.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.add_typer(cluster.app)
    app.add_typer(diagnosis.app)
    for name, module in (("kv", "client.cli.kv"), ("chaos", "chaos.cli"), ("bench", "client.bench.cli")):
        try:
            app.add_typer(import_module(module).app, name=name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    sys.exit(run_app(app, name="tenfold"))
