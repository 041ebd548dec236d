"""What the commands about the cluster share: their options, and how what goes wrong there ends them."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cli.output import CALLERS_MISTAKES, Exit, error_name, fail
from cluster.errors import TenfoldError

DEFAULT_DIRECTORY = Path(".tenfold")

Dir = Annotated[Path, typer.Option("--dir", help="The cluster's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")]
Nodes = Annotated[list[str] | None, typer.Argument(metavar="NODE", help="Names of nodes, as `status` shows them.")]
All = Annotated[bool, typer.Option("--all", help="Every node.")]


async def decided(work: Coroutine[Any, Any, None]) -> None:
    """A node that does not run or come up is a failed operation here, not an unknown outcome as over the wire; so is a
    file that cannot be read or written."""
    try:
        await work
    except TenfoldError as error:
        if error.code in CALLERS_MISTAKES:
            raise
        fail(Exit.FAILED, f"{error_name(error.code)}: {error.message}")
    except OSError as error:
        if error.filename is None:
            raise
        fail(Exit.FAILED, f"{error.filename}: {error.strerror}")
