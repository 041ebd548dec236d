"""One command at a time: the lock excludes, waits, and dies with its holder."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from cluster.errors import Code, TenfoldError
from cluster.local.lock import directory_lock

HOLDER = """
import asyncio, sys
from pathlib import Path
from cluster.local.lock import directory_lock

async def main():
    async with directory_lock(Path(sys.argv[1])):
        child = await asyncio.create_subprocess_exec("sleep", "60", stdin=-3, stdout=-3, stderr=-3)
        print(child.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []

    async def work(name: str, held: asyncio.Event, go: asyncio.Event) -> None:
        async with directory_lock(tmp_path / "lock"):
            order.append(f"{name} in")
            held.set()
            await go.wait()
            order.append(f"{name} out")

    first_held, second_held, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(10):
        first = asyncio.create_task(work("first", first_held, go))
        await first_held.wait()
        second = asyncio.create_task(work("second", second_held, go))
        with pytest.raises(TenfoldError, match="another command") as refused:
            async with directory_lock(tmp_path / "lock", wait_s=0.0):
                pass
        assert refused.value.code is Code.OVERLOADED
        assert not second_held.is_set()
        go.set()
        await asyncio.gather(first, second)
    assert order == ["first in", "first out", "second in", "second out"]


async def test_the_lock_of_a_holder_killed_at_once_is_free_even_if_its_children_live(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    holder = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    assert holder.stdout is not None
    async with asyncio.timeout(20):
        child = int(await holder.stdout.readline())
        try:
            with pytest.raises(TenfoldError):
                async with directory_lock(tmp_path / "lock", wait_s=0.0):
                    pass
            holder.kill()
            async with directory_lock(tmp_path / "lock"):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)
            await holder.wait()


async def test_a_lock_file_that_was_purged_meanwhile_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    async with asyncio.timeout(10):
        async with directory_lock(path):
            path.unlink()
            async with directory_lock(path, wait_s=0.0):
                assert path.exists()
