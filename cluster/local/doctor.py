"""Looks at this host before it is trusted with a cluster: each check really does what it is about."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from cluster.errors import TenfoldError
from cluster.local.free_ports import free_ports

OK, WARN, FAIL, ABSENT = "ok", "warn", "fail", "absent"  # absent: optional, and not there
PYTHON_MIN = (3, 11)
PACKAGES = {
    "grpcio": "grpc",
    "protobuf": "google.protobuf",
    "uvloop": "uvloop",
    "rocksdict": "rocksdict",
    "xxhash": "xxhash",
    "msgspec": "msgspec",
    "structlog": "structlog",
    "psutil": "psutil",
    "rich": "rich",
    "typer": "typer",
}
PORTS = 8
DISK_BYTES_MIN = 256 << 20
DISK_BYTES_ENOUGH = 2 << 30
FSYNCS = 30
FSYNC_MS_GOOD = 20.0
FSYNC_MS_MAX = 250.0  # a round takes one; two of them and more eat an election timeout of one second
FILES_MIN = 1024
PROBE_TIMEOUT_S = 5.0


class Check(NamedTuple):
    name: str
    state: str
    detail: str


def examine(directory: Path) -> list[Check]:
    """All checks; `directory` (or what exists above it) is where the cluster would live. Takes about a second."""
    home = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.is_dir())
    checks: list[tuple[str, Callable[[], tuple[str, str]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("ports", _ports),
        ("disk space", lambda: _disk_space(home)),
        ("fsync", lambda: _fsync(home)),
        ("open files", _open_files),
        ("faults T0: signals", _signals),
        ("faults T0: strace", lambda: _tool("strace", "failing and slow system calls")),
        ("faults T1: namespaces", _namespaces),
        ("faults T2: root", _root),
    ]
    return [_checked(name, check) for name, check in checks]


def _checked(name: str, check: Callable[[], tuple[str, str]]) -> Check:
    try:
        return Check(name, *check())
    except (OSError, TenfoldError, subprocess.SubprocessError) as error:
        return Check(name, FAIL, str(error))


def _python() -> tuple[str, str]:
    version = sys.version.split()[0]
    if sys.version_info < PYTHON_MIN or sys.implementation.name != "cpython":
        return FAIL, f"{sys.implementation.name} {version}, CPython {'.'.join(map(str, PYTHON_MIN))} or newer is needed"
    return OK, version


def _packages() -> tuple[str, str]:
    """Imports them, since a wheel of another platform is found out only so."""
    broken = []
    for package, module in PACKAGES.items():
        try:
            import_module(module)
            metadata.version(package)
        except (ImportError, metadata.PackageNotFoundError) as error:
            broken.append(f"{package}: {error}")
    if broken:
        return FAIL, "; ".join(broken)
    return OK, ", ".join(f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf", "rocksdict", "uvloop"))


def _ports() -> tuple[str, str]:
    found = free_ports(PORTS)
    return OK, f"{len(found)} of {PORTS} wanted are free, from {min(found)} on"


def _disk_space(home: Path) -> tuple[str, str]:
    free = shutil.disk_usage(home).free
    state = FAIL if free < DISK_BYTES_MIN else WARN if free < DISK_BYTES_ENOUGH else OK
    return state, f"{free / (1 << 30):.1f} GiB free at {home}"


def _fsync(home: Path) -> tuple[str, str]:
    taken = []
    with tempfile.TemporaryFile(dir=home) as file:
        for _ in range(FSYNCS):
            file.write(b"\0" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - start) * 1000)
    median = statistics.median(taken)
    state = FAIL if median > FSYNC_MS_MAX else WARN if median > FSYNC_MS_GOOD else OK
    return state, f"4 KiB and fdatasync: median {median:.2f} ms, slowest of {FSYNCS} {max(taken):.2f} ms"


def _open_files() -> tuple[str, str]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= FILES_MIN
    return (OK if enough else WARN), f"a process may open {soft}"


def _signals() -> tuple[str, str]:
    """Stops, continues and kills a child of our own."""
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            child.send_signal(number)
            options = os.WUNTRACED if number == signal.SIGSTOP else os.WCONTINUED
            os.waitpid(child.pid, options)
    finally:
        child.kill()
        child.wait(PROBE_TIMEOUT_S)
    return OK, "kill, pause and resume work"


def _tool(name: str, use: str) -> tuple[str, str]:
    found = shutil.which(name)
    return (OK, found) if found else (ABSENT, f"{name} is not installed; it gives {use}")


def _namespaces() -> tuple[str, str]:
    if shutil.which("unshare") is None:
        return ABSENT, "unshare is not installed"
    tried = subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    if tried.returncode != 0:
        return ABSENT, tried.stderr.decode(errors="replace").strip() or "user namespaces are switched off"
    return OK, "user and network namespaces work"


def _root() -> tuple[str, str]:
    return (OK, "this is root") if os.geteuid() == 0 else (ABSENT, "not root")
