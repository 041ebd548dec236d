"""A cluster of three processes under the `tenfold` command, for the tests of one file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 60.0


def tenfold(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs the command to its end."""
    command = [sys.executable, "-m", "tenfold", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=COMMAND_TIMEOUT_S, cwd=REPOSITORY)


@contextmanager
def cluster_of_three(directory: Path) -> Iterator[Path]:
    up = tenfold("up", "--nodes", 3, "--dir", directory)
    try:
        assert up.returncode == 0, up.stderr.decode()
        yield directory
    finally:
        down = tenfold("down", "--dir", directory, "--purge")
    assert down.returncode == 0, down.stderr.decode()
