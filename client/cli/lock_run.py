"""`tenfold lock run`: a command that lives no longer than the lock it runs under.

Laws: the command and all that it leaves in its process group are told to end as soon as the lock is lost, and killed when they do not;
what it leaves behind ends with it. An interrupt of this process goes to that group, once, from before the command begins.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from client.cli.output import Exit, fail, note

if TYPE_CHECKING:
    from client.client import Client
    from client.lock_held import Held

TOKEN_VARIABLE = "TENFOLD_LOCK_TOKEN"
CHILD = Path(__file__).with_name("lock_child.py")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_S = 0.02
"""Nothing tells that a process group has become empty."""


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
        interrupts = _Interrupts()
        group = await _begin(command, {**os.environ, TOKEN_VARIABLE: str(held.token)})
        interrupts.pass_to(group)
        try:
            return await _stay(group, held, grace_s)
        finally:
            await group.end(grace_s)
            _take_terminal_back(group)


class _Interrupts:
    """Those that come before there is a command are kept for it. What whoever started this wanted ignored stays ignored."""

    def __init__(self) -> None:
        self._early: list[int] = []
        self._group: _Group | None = None
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._came, number)

    def pass_to(self, group: _Group) -> None:
        self._group = group
        for number in self._early:
            group.signal(number)

    def _came(self, number: int) -> None:
        if self._group is None:
            self._early.append(number)
        else:
            self._group.signal(number)


class _Group:
    """A command and what it starts."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.id = process.pid

    def signal(self, number: int) -> bool:
        """Whether there is anybody left; 0 only asks."""
        try:
            os.killpg(self.id, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user by now
            return True
        return True

    async def end(self, grace_s: float) -> None:
        if self.signal(signal.SIGTERM) and self.signal(signal.SIGCONT):
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    while self.signal(0):
                        await asyncio.sleep(POLL_S)
            self.signal(signal.SIGKILL)
        await self.process.wait()


async def _begin(command: Sequence[str], environment: dict[str, str]) -> _Group:
    """Returns when the command leads its group."""
    told, tell = os.pipe()
    try:
        arguments = [sys.executable, "-I", "-S", str(CHILD), str(os.getpid()), str(tell), *command]
        process = await asyncio.create_subprocess_exec(*arguments, env=environment, pass_fds=(tell,))
        os.close(tell)
        tell = -1
        error = await asyncio.to_thread(os.read, told, 16)
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
    if error:
        await process.wait()
        fail(Exit.FAILED, f"{command[0]}: {os.strerror(int(error))}")
    return _Group(process)


async def _stay(group: _Group, held: Held, grace_s: float) -> int:
    loop = asyncio.get_running_loop()
    ended = loop.create_task(group.process.wait())
    lost = loop.create_task(held.lost.wait())
    try:
        await asyncio.wait((ended, lost), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        lost.cancel()
    code = group.process.returncode
    if code is None:
        note(f"the lock is lost: {held.lost_reason}; the command is ended")
        await group.end(grace_s)
        return Exit.FAILED
    return code if code >= 0 else 128 - code


def _take_terminal_back(group: _Group) -> None:
    with suppress(OSError):
        if os.tcgetpgrp(0) == group.id:
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)
