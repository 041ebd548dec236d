"""A process that is killed (SIGKILL) at every failpoint of the log and at 200 random syncs, on the real disk.

The writer is a forked child, cheap enough for hundreds of deaths; what it acknowledges goes through a pipe. Every child
first recovers what its predecessors left. SIGKILL keeps the page cache, so this proves the order of the writes and the
recovery, not the syncs: those are proved on the disk that forgets.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from node.storage import disk as disk_module
from node.storage import identity, log, segment
from node.storage.disk import RealDisk
from node.storage.failpoints import NAMES, armed
from node.storage.identity import Identity, Sealed
from node.storage.log import RecoveredShard
from tests.storage.storage_world import (
    Model,
    ShardModel,
    after_round,
    begun,
    difference,
    next_round,
    open_log,
)

OF_THE_LOG = [name for name in NAMES if name.split(".")[0] in ("append", "sync", "segment", "release", "recovery")]
KILLS = 200
MINE = Identity(b"cluster", "n1")
LIFE_ROUNDS = 40


def arm(setting: str) -> None:
    """What `TENFOLD_FAILPOINT` does at import, in a child that has imported already."""
    hit = armed(setting)
    for module in (disk_module, identity, log, segment):
        if hasattr(module, "failpoint"):
            vars(module)["failpoint"] = hit
    vars(disk_module)["torn_wanted"] = setting.startswith("append.torn")


def rounds_until(seed: int, rounds: int) -> tuple[Model, random.Random]:
    """What the log holds after so many rounds of all lives together, and the choices for the next one."""
    model: Model = {shard: ShardModel(11) for shard in (1, 2, 3)} if rounds else {}
    choose = random.Random(seed)
    for _ in range(rounds - 1):
        for addition in next_round(model, choose):
            model[addition.shard].take(addition)
    return model, choose


def matches(model: Model, found: dict[int, RecoveredShard]) -> str:
    return difference(model, found, {shard: state.hard.commit for shard, state in model.items()})


async def write(directory: Path, seed: int, done: int, tell: Callable[[int], None]) -> None:
    """Goes on after `done` rounds; tells each round that is durable."""
    disk = RealDisk(directory)
    writer, found = await open_log(disk)
    model, choose = rounds_until(seed, done)
    if matches(model, found):
        done += 1
        model, choose = rounds_until(seed, done)
        assert matches(model, found) == ""
    tell(done)
    for number in range(done, done + LIFE_ROUNDS):
        if number == 0:
            model = begun(writer)
            writer.append([])
        else:
            rounds = next_round(model, choose)
            model = after_round(model, rounds)
            writer.append(rounds)
        await writer.sync()
        tell(number + 1)
        if number % 16 == 15:
            writer.release({shard: (11, state.hard.commit) for shard, state in model.items()})


def live(
    work: Callable[[Callable[[int], None]], Coroutine[Any, Any, None]], done: int, setting: str
) -> tuple[int, bool]:
    """One forked life; how many rounds it acknowledged in all, and whether it was killed."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            arm(setting)

            def tell(number: int) -> None:
                os.write(theirs, number.to_bytes(4, "big"))

            asyncio.run(work(tell))
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{setting} {error!r}\n".encode())
            os._exit(1)
    os.close(theirs)
    told = b""
    while piece := os.read(ours, 65536):
        told += piece
    os.close(ours)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"{setting}: the writer failed"
    return max(done, int.from_bytes(told[-4:], "big")), killed


def life(directory: Path, seed: int, done: int, setting: str) -> tuple[int, bool]:
    return live(lambda tell: write(directory, seed, done, tell), done, setting)


async def found_in(directory: Path) -> dict[int, RecoveredShard]:
    disk = RealDisk(directory)
    try:
        opened, found = await open_log(disk)
        await opened.close()
    finally:
        disk.close()
    return found


def check(directory: Path, seed: int, done: int, where: str) -> None:
    """All that was acknowledged is there, and at most the one round that was under way."""
    found = asyncio.run(found_in(directory))
    problems = [matches(rounds_until(seed, rounds)[0], found) for rounds in (done, done + 1)]
    assert "" in problems, f"{where}: after {done} rounds: {problems}"


@pytest.mark.parametrize("name", OF_THE_LOG)
def test_recovery_after_a_kill_at_every_failpoint(tmp_path: Path, name: str) -> None:
    deaths = 0
    for nth in (1,) if name.startswith("recovery") else (1, 2, 5):
        directory = tmp_path / str(nth)
        done = 0
        for _ in range(2):
            done, killed = life(directory, nth, done, f"{name}:{nth}")
            deaths += killed
            check(directory, nth, done, f"{name}:{nth}")
    assert deaths >= 2, f"{name} is never reached"


def test_recovery_after_kills_at_random_syncs(tmp_path: Path) -> None:
    """200 deaths before or after a random sync; a directory is worn down by a dozen of them."""
    choose = random.Random(7)
    deaths = history = 0
    while deaths < KILLS:
        history += 1
        directory, done = tmp_path / str(history), 0
        for _ in range(12):
            side = choose.choice(("before", "after"))
            done, killed = life(directory, history, done, f"sync.{side}:{choose.randint(1, 20)}")
            deaths += killed
        check(directory, history, done, f"history {history}")
    assert deaths >= KILLS


async def seal(directory: Path, tell: Callable[[int], None]) -> None:
    sealed = Sealed(RealDisk(directory), "facts")
    first = int(sealed.read(MINE) or b"0")
    for number in range(first + 1, first + 20):
        await sealed.write(MINE, b"%d" % number)
        tell(number)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("sealed.")])
def test_a_sealed_file_after_a_kill_is_the_old_or_the_new_one(tmp_path: Path, name: str) -> None:
    done = 0
    for nth in (1, 2, 5):
        done, killed = live(lambda tell: seal(tmp_path, tell), done, f"{name}:{nth}")
        disk = RealDisk(tmp_path)
        found = int(Sealed(disk, "facts").read(MINE) or b"0")
        disk.close()
        assert killed and done <= found <= done + 1
        done = found


PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.storage.test_kills import write
asyncio.run(write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), lambda number: print(number, flush=True)))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_recovery_after_kills_inside_the_system_call(tmp_path: Path) -> None:
    """The same with strace, which kills at the n-th fdatasync of a thread, from outside. (With --seccomp-bpf strace 6.1
    does not deliver the signal.)"""
    done = 0
    for when in (4, 7, 5):
        inject = ["-e", "trace=fdatasync", "-e", f"inject=fdatasync:signal=SIGKILL:when={when}"]
        program = [sys.executable, "-c", PROGRAM, str(tmp_path), "3", str(done)]
        run = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", *inject, *program],
            capture_output=True,
            text=True,
            timeout=100,
        )
        if "ptrace" in run.stderr or "PTRACE" in run.stderr:
            pytest.skip("ptrace is not allowed here")
        assert run.returncode == -signal.SIGKILL, run.stderr
        done = max([done, *map(int, run.stdout.split())])
        check(tmp_path, 3, done, f"strace {when}")
    assert done > 0
