"""`tenfold lock run`: a command that lives no longer than the lock it runs under.

Law: the command is told to end as soon as the lock is lost, and killed when it does not; an interrupt of this process goes to it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from client.cli.output import Exit, fail, note

if TYPE_CHECKING:
    from client.client import Client
    from client.lock_held import Held

TOKEN_VARIABLE = "TENFOLD_LOCK_TOKEN"


async def run_holding(
    connect: Callable[[], Client],
    name: str,
    command: Sequence[str],
    ttl: float,
    wait: float,
    owner: str,
    grace_s: float,
) -> int:
    """The exit code: the command's, 128 + the number of the signal that ended it, or 1 if the lock was lost."""
    async with connect() as client, client.lock.hold(name, ttl=ttl, wait=wait, owner=owner) as held:
        environment = {**os.environ, TOKEN_VARIABLE: str(held.token)}
        try:
            process = await asyncio.create_subprocess_exec(*command, env=environment)
        except OSError as error:
            fail(Exit.FAILED, f"{command[0]}: {error.strerror}")
        try:
            return await _stay(process, held, grace_s)
        finally:
            if process.returncode is None:
                await _end(process, grace_s)


async def _stay(process: asyncio.subprocess.Process, held: Held, grace_s: float) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _pass_on, process, number)
    ended = loop.create_task(process.wait())
    lost = loop.create_task(held.lost.wait())
    try:
        await asyncio.wait((ended, lost), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        lost.cancel()
    if process.returncode is None:
        note(f"the lock is lost: {held.lost_reason}; the command is ended")
        await _end(process, grace_s)
        return Exit.FAILED
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _pass_on(process: asyncio.subprocess.Process, number: int) -> None:
    if process.returncode is None:
        process.send_signal(number)


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    process.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
