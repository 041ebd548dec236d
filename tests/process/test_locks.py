"""`tenfold lock` against real nodes: two processes that want one lock, a command under a lock, a holder that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from client.client import Client
from client.sync import SyncClient
from cluster.errors import Code, TenfoldError
from tests.process.kv_cluster import REPOSITORY, cluster_of_three, tenfold

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster_of_three(tmp_path_factory.mktemp("locks") / "cluster") as made:
        yield made


def test_two_processes_and_one_lock(directory: Path) -> None:
    at = ("--dir", directory)
    first = tenfold("lock", "acquire", "deploy", "--ttl", 60, "--owner", "one", "--json", *at)
    assert first.returncode == 0, first.stderr.decode()
    token = json.loads(first.stdout)["token"]
    second = tenfold("lock", "acquire", "deploy", "--ttl", 60, *at)
    assert second.returncode == 1 and b"LockHeld" in second.stderr and b"'one'" in second.stderr
    listed = json.loads(tenfold("lock", "list", "--json", *at).stdout)
    (lock,) = listed["locks"]
    (holder,) = lock.pop("holders")
    assert lock == {"name": "deploy", "mode": "exclusive", "waiters": []}
    assert (holder["owner"], holder["token"]) == ("one", token) and 0 < holder["remaining_ms"] <= 60_000
    assert tenfold("lock", "release", "deploy", "--token", token + 1, *at).returncode == 1
    assert tenfold("lock", "release", "deploy", "--token", token, *at).stdout == b"released\n"
    third = tenfold("lock", "acquire", "deploy", "--ttl", 60, *at)
    assert third.returncode == 0 and int(third.stdout) > token
    seen = tenfold("lock", "watch", "deploy", "--events", 1, *at)
    assert seen.stdout.split(b"\t")[0] == third.stdout.strip()


def test_a_command_runs_under_a_lock_and_gives_its_exit_code(directory: Path) -> None:
    code = "import os, sys; print(os.environ['TENFOLD_LOCK_TOKEN']); sys.exit(7)"
    run = ("lock", "run", "job", "--ttl", 10, "--wait", 20, "--dir", directory, "--", sys.executable, "-c", code)
    first, second = tenfold(*run), tenfold(*run)
    assert (first.returncode, second.returncode) == (7, 7), first.stderr.decode()
    assert 0 < int(first.stdout) < int(second.stdout)
    assert json.loads(tenfold("lock", "list", "--json", "--prefix", "job", "--dir", directory).stdout) == {"locks": []}


def holder(directory: Path, name: str, ttl: float) -> subprocess.Popen[bytes]:
    """A process of its own group that holds the lock for a minute; its command ignores SIGTERM."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-m", "tenfold", "lock", "run", name, "--ttl", ttl, "--grace", 0.3, "--dir", directory]
    command += ["--", sys.executable, "-c", code]
    return subprocess.Popen(
        [*map(str, command)], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_command_is_ended_when_its_lock_is_lost(directory: Path) -> None:
    process = holder(directory, "taken", 2.0)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"

        async def take_away() -> bool:
            async with Client.from_directory(directory) as client:
                return await client.lock.force_release("taken")

        assert asyncio.run(take_away())
        assert process.wait(LIMIT_S) == 1
        assert process.stderr is not None and b"the lock is lost" in process.stderr.read()
    finally:
        end(process)


def running(directory: Path, name: str, script: str) -> subprocess.Popen[bytes]:
    """`lock run` of a shell script, in which "$0" is python, as the leader of a process group, as a shell starts it."""
    command = [sys.executable, "-m", "tenfold", "lock", "run", name, "--ttl", "5", "--grace", "0.3"]
    command += ["--dir", str(directory), "--", "sh", "-c", script, sys.executable]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)


def lives(pid: int) -> bool:
    """What has ended and was not waited for lives no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int) -> bool:
    until = time.monotonic() + LIMIT_S
    while lives(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


SLEEPS = """ "$0" -c 'import os, time; print(os.getpid(), flush=True); time.sleep(300)' """


@pytest.mark.parametrize("how", ["lost", "SIGHUP", "SIGTERM", "SIGKILL", "ended"])
def test_nothing_of_a_command_outlives_its_lock(directory: Path, how: str) -> None:
    """Of what it has started, neither: but for SIGKILL, which reaches the command alone."""
    scripts = {"ended": f"{SLEEPS} & read line", "SIGKILL": f"exec {SLEEPS}"}
    pid = 0
    process = running(directory, f"run-{how}", scripts.get(how, f"{SLEEPS}; echo second"))
    try:
        assert process.stdin is not None and process.stdout is not None
        pid = int(process.stdout.readline())
        assert lives(pid)
        if how == "lost":

            async def take_away() -> bool:
                async with Client.from_directory(directory) as client:
                    return await client.lock.force_release("run-lost")

            assert asyncio.run(take_away())
        elif how == "ended":
            process.stdin.write(b"\n")
            process.stdin.flush()
        else:
            process.send_signal(signal.Signals[how])
        assert process.wait(LIMIT_S) == {"lost": 1, "SIGHUP": 129, "SIGTERM": 143, "SIGKILL": -9, "ended": 0}[how]
        assert ends(pid) if how == "SIGKILL" else not lives(pid), "when `lock run` has ended, it has"
    finally:
        if pid and lives(pid):
            os.kill(pid, signal.SIGKILL)
        end(process)


def test_an_interrupt_from_the_terminal_reaches_a_command_once(directory: Path) -> None:
    code = "n = [0]; signal.signal(2, lambda *_: n.append(1)); print(os.tcgetpgrp(0) == os.getpgrp(), flush=True)"
    script = f"import os, signal, time\n{code}\nwhile len(n) < 2: time.sleep(0.02)\ntime.sleep(0.3)\nprint(len(n) - 1)"
    command = [sys.executable, "-m", "tenfold", "lock", "run", "tty", "--dir", str(directory), "--", sys.executable]
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir(REPOSITORY)
            os.execv(sys.executable, [*command, "-c", script])
        finally:
            os._exit(99)
    shown, asked = b"", False
    try:
        until = time.monotonic() + LIMIT_S
        with suppress(OSError):  # the terminal ends with its last process
            while select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0]:
                some = os.read(terminal, 1000)
                if not some:
                    break
                shown += some
                if b"True" in shown and not asked:
                    asked = True
                    os.write(terminal, b"\x03\x1a")  # Ctrl-C, and Ctrl-Z, which would stop what keeps the lock alive
        assert time.monotonic() < until, shown
        code, pid = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0
        assert code == 0, shown
        assert shown.decode().split()[-1].endswith("1"), shown
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


async def test_a_holder_that_is_killed_frees_its_lock_after_its_ttl_and_not_before(directory: Path) -> None:
    ttl_s = 2.0
    process = holder(directory, "mine", ttl_s)
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
        async with asyncio.timeout(LIMIT_S), Client.from_directory(directory) as client:
            before = await client.lock.check("mine")
            beyond = time.monotonic() + 1.5 * ttl_s
            while time.monotonic() < beyond:  # kept alive beyond its first ttl
                now = await client.lock.check("mine")
                assert [each.token for each in now.holders] == [each.token for each in before.holders] != []
            process.kill()
            asked = time.monotonic()
            await client.kv.put("{mine}", "")  # the shard's time is that of its last entry: what remains is said by it
            left_s = (await client.lock.check("mine")).holders[0].remaining_ms / 1000
            held = await client.lock.acquire("mine", 10_000, 30_000)
            freed = time.monotonic()
            assert held.token > before.holders[0].token
            assert ttl_s / 2 < left_s <= ttl_s, "renewed each third of the ttl"
            assert freed >= asked + left_s - 0.01, (
                "not before the lease has ended; 10 ms for the rounding of shard time"
            )
            await held.release()
    finally:
        end(process)


def test_threads_without_asyncio(directory: Path) -> None:
    with SyncClient.from_directory(directory) as client:
        with client.lock.hold("threads", ttl=5) as held:
            assert 0 < held.remaining_s <= 4.5 and not held.lost
            client.kv.put("{threads}x", "1", if_fence=held)
            assert [info.name for info in client.lock.list("threads")] == ["threads"]
            with pytest.raises(TenfoldError) as caught:
                client.lock.acquire("threads", 5000)
            assert caught.value.code is Code.LOCK_HELD
        assert not client.lock.check("threads").holders
        with pytest.raises(TenfoldError) as caught:
            client.kv.put("{threads}x", "2", if_fence=("threads", held.token))
        assert caught.value.code is Code.STALE_TOKEN
