"""The processes of nodes: started, recognised, signalled.

A node's process is recognised by its command line, which names its directory, never by a pid alone: pids are reused and
run.json may be stale. psutil checks pid and start time together before it sends a signal.
"""

from __future__ import annotations

import os
import signal
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import psutil

SOURCE = Path(__file__).resolve().parents[2]
DIE_WITH_PARENT = "--die-with-parent"
PARENT_VARIABLE = "TENFOLD_PARENT_PID"  # lets the node notice that its parent died before it could ask the kernel


def command(directory: Path, die_with_parent: bool) -> list[str]:
    """The command line of the node that lives in `directory`. -P: a `node` in the working directory is not ours."""
    extra = [DIE_WITH_PARENT] if die_with_parent else []
    return [sys.executable, "-P", "-m", "node", "--dir", str(directory), *extra]


def environment() -> dict[str, str]:
    """Ours, with the tree that this very module comes from, so that a node never runs other code than its launcher."""
    variables = dict(os.environ)
    if str(SOURCE) not in site.getsitepackages():
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), variables.get("PYTHONPATH", "")]))
    return variables


def spawn(
    directory: Path, log: Path, *, die_with_parent: bool, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts the node that lives in `directory`, its output appended to `log`, in a session of its own, with `variables` added to
    our environment.

    It inherits no descriptor. With `die_with_parent` the node asks the kernel for SIGKILL at its parent's death; the
    kernel means the thread that spawned it, so call this from one that lives as long as the cluster shall.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command(directory, die_with_parent),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env={**environment(), **variables, PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
            close_fds=True,
        )


def is_node(arguments: Sequence[str], directory: Path) -> bool:
    """Whether this is the command line of the node that lives in `directory`."""
    pairs = list(pairwise(arguments))
    python = bool(arguments) and Path(arguments[0]).name.startswith(
        "python"
    )  # not a tracer that was given the same words
    return python and ("-m", "node") in pairs and ("--dir", str(directory)) in pairs


def find(hints: Mapping[Path, int | None]) -> dict[Path, psutil.Process]:
    """The living processes of the nodes in these directories; a hint is the pid to look at first.

    Where it does not help, every process is looked at, since a node that does not listen yet has written no run.json.
    """
    found: dict[Path, psutil.Process] = {}
    for directory, pid in hints.items():
        if pid is not None and (process := _check(pid, directory)) is not None:
            found[directory] = process
    missing = [directory for directory in hints if directory not in found]
    for process in psutil.process_iter() if missing else ():
        arguments = _arguments(process)
        found.update({directory: process for directory in missing if is_node(arguments, directory)})
    return found


def _check(pid: int, directory: Path) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
    except (psutil.Error, ValueError):
        return None
    return process if is_node(_arguments(process), directory) else None


def _arguments(process: psutil.Process) -> list[str]:
    """[] if it is gone, or a zombie, or none of our business."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie: its files and ports are gone."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_paused(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Sends a signal to that very process; False if it is gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True
