"""Runs cases one after the other, or several at a time in processes of their own; results come in the order of the cases.

A worker is `python -m chaos.sim.jobs`: a case a line on stdin, a result a line on stdout. It ends with its stdin, so that no
worker outlives its parent by more than one case.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator

import msgspec

from chaos.sim.case import Case
from chaos.sim.run import SeedResult

LINE_BYTES_MAX = 64 * 1024 * 1024

Tell = Callable[[Case, SeedResult], None]


def run_cases(cases: Iterator[Case], jobs: int, tell: Tell) -> None:
    """Takes the next case only when it can begin at once, and tells each result as soon as those before it are told."""
    if jobs > 1:
        asyncio.run(_spread(cases, jobs, tell))
        return
    for case in cases:
        tell(case, case.run())


class _InOrder:
    """Holds results back until their turn."""

    def __init__(self, cases: Iterator[Case], tell: Tell) -> None:
        self._cases = enumerate(cases)
        self._tell = tell
        self._done: dict[int, tuple[Case, SeedResult]] = {}
        self._turn = 0

    def take(self) -> tuple[int, Case] | None:
        return next(self._cases, None)

    def put(self, number: int, case: Case, result: SeedResult) -> None:
        self._done[number] = (case, result)
        while self._turn in self._done:
            self._tell(*self._done.pop(self._turn))
            self._turn += 1


async def _spread(cases: Iterator[Case], jobs: int, tell: Tell) -> None:
    order = _InOrder(cases, tell)
    await asyncio.gather(*(_work(order) for _ in range(jobs)))


async def _work(order: _InOrder) -> None:
    """Feeds one worker until nothing is left; one that dies is replaced."""
    process: asyncio.subprocess.Process | None = None
    try:
        while (taken := order.take()) is not None:
            number, case = taken
            if process is None:
                process = await _start()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(msgspec.json.encode(case) + b"\n")
            line = await process.stdout.readline()
            if line.endswith(b"\n"):
                order.put(number, case, msgspec.json.decode(line, type=SeedResult))
                continue
            code = await process.wait()
            process = None
            reason = f"its process ended with code {code}"
            order.put(number, case, SeedResult(case.options.seed, "crash", "", 0, 0, 0.0, 0.0, reasons=[reason]))
    finally:
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _start() -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "chaos.sim.jobs"]
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=LINE_BYTES_MAX)


def main() -> None:
    """The worker."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever else is printed must not come between
        for line in sys.stdin.buffer:
            answers.write(msgspec.json.encode(msgspec.json.decode(line, type=Case).run()) + b"\n")
            answers.flush()


if __name__ == "__main__":
    main()
