"""The process entry: `python -m node --dir DIR`. Builds the real ports, runs one node until it is told to stop.

Exit codes: 0 a clean stop, 1 the directory, the configuration or the port cannot be used (one line on stderr), 4 a crash:
a failed write, or a bug. Logs are JSON lines on stderr.

A damaged state engine is no end: its directory is set aside and the process begins anew (execve: pid, arguments and
descriptors of the launcher stay; threads, sockets and locks of the first life are gone). Replicas whose log is not whole from
its first entry are then quarantined, since their empty state is behind their log's base.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import msgspec
import psutil
import structlog
import uvloop

from cluster.errors import TenfoldError
from cluster.limits import DEFAULT
from cluster.local.layout import ROUTES
from cluster.ports import Dial, StateDamaged, StorageFailed
from cluster.wire.channel import dial
from node.app import Node, Ports, ProcessFigures
from node.config import NodeConfig, read_config
from node.storage.disk import RealDisk, boot_id
from node.storage.identity import Identity
from node.storage.rocks_state import RocksState, set_aside
from node.transport.server import Server

PR_SET_PDEATHSIG = 1
EXIT_UNUSABLE = 1
EXIT_CRASH = 4
STATE = "state"
SET_ASIDE_AT = "TENFOLD_STATE_SET_ASIDE_AT"  # by the life before this one: monotonic seconds
SET_ASIDE_AGAIN_S = 10.0  # damage again so soon is not the rot of a disk


class SystemClock:
    """The Clock port of a process."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class LogFile:
    """stderr, but a full disk under it costs log lines, not the node."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class TaskSpawn:
    """The Spawn port of a process: keeps a reference. A task that died of an exception is a bug: it is logged, and told
    to `on_died` once that is set."""

    def __init__(self) -> None:
        self.on_died: Callable[[BaseException], None] | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._log = structlog.get_logger("tasks")

    def __call__(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self._log.error("background task died", task=task.get_name(), exc_info=error)
            if self.on_died is not None:
                self.on_died(error)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m node", description="One Tenfold node.")
    parser.add_argument("--dir", required=True, type=Path, help="the node's directory, with its node.json")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the process that started it ends")
    options = parser.parse_args(arguments)
    if options.die_with_parent:
        _die_with_parent()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", LogFile())),
        cache_logger_on_first_use=True,
    )
    path = options.dir / "node.json"
    try:
        config = read_config(path.read_bytes(), path)
        code: int = uvloop.run(_run(config, options.dir))
        return code
    except (TenfoldError, StorageFailed, OSError) as error:
        print(f"node: {error}", file=sys.stderr)
        return EXIT_UNUSABLE


async def _run(config: NodeConfig, directory: Path) -> int:
    disk = RealDisk(directory)
    identity = Identity(config.cluster, config.node)
    spawn = TaskSpawn()
    ports = Ports(
        disk=disk,
        open_state=lambda: RocksState(directory / STATE, identity),
        dial=_routed(directory / ROUTES),
        serve=lambda handlers, address: Server(handlers, address=address, limits=DEFAULT),
        clock=SystemClock(),
        random=random.Random(),
        spawn=spawn,
        boot_id=boot_id(),
        process=_figures,
    )
    node = Node(config, ports, DEFAULT)
    spawn.on_died = node.fail
    try:
        await node.start()
    except StateDamaged as damage:
        _begin_anew(directory, damage)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # before this a signal ends the process, and nothing is lost by it
        loop.add_signal_handler(number, node.begin_stop)
    _write_run_file(directory, node)
    gc.collect()
    gc.freeze()  # what lives for ever is not looked at again
    failure = await node.stopped
    if isinstance(failure, StateDamaged) and not node.stopping:
        _begin_anew(directory, failure)
    if failure is not None:
        _crash("stopping after a failure", failure)
    return 0


def _routed(path: Path) -> Dial:
    """Where there is a file of routes, what it names is dialled elsewhere: experiments put their links between nodes so. OSError,
    msgspec.DecodeError."""
    if not path.exists():
        return dial
    routes = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    structlog.get_logger("node").info("routes", path=str(path), count=len(routes))
    return lambda address: dial(routes.get(address, address))


def _figures() -> ProcessFigures:
    process = psutil.Process()
    times = process.cpu_times()
    return ProcessFigures(process.pid, process.memory_info().rss, times.user + times.system)


def _crash(why: str, failure: BaseException) -> NoReturn:
    """Nothing is tidied after a failed write: recovery will look at what is really there."""
    structlog.get_logger("node").critical(why, error=repr(failure), exc_info=failure)
    sys.stderr.flush()
    os._exit(EXIT_CRASH)


def _begin_anew(directory: Path, damage: StateDamaged) -> NoReturn:
    """The state is lost, the log is not: this process starts again with an empty one."""
    now = time.monotonic()
    if now - float(os.environ.get(SET_ASIDE_AT, "-inf")) < SET_ASIDE_AGAIN_S:
        _crash("the state is damaged again", damage)
    try:
        aside = set_aside(directory / STATE)
    except StorageFailed as failure:
        _crash("the damaged state cannot be set aside", failure)
    os.environ[SET_ASIDE_AT] = str(now)
    structlog.get_logger("node").critical("state damaged: going on without it", error=str(damage), kept=str(aside))
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _write_run_file(directory: Path, node: Node) -> None:
    """Tells the launcher where this node listens; replaced whole."""
    run = {"pid": os.getpid(), "address": node.address, "incarnation": node.incarnation}
    scratch = directory / "run.json.tmp"
    scratch.write_bytes(msgspec.json.encode(run))
    scratch.rename(directory / "run.json")


def _die_with_parent() -> None:
    parent = int(os.environ.get("TENFOLD_PARENT_PID", os.getppid()))  # it may have died before this line
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(EXIT_CRASH)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
