"""The client's background tasks: started in order, kept alive, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

R = TypeVar("R")


class Tasks:
    """A `ports.Spawn`. A task that dies of an unexpected exception is told to the loop's exception handler."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], None] = {}

    def __call__(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running[task] = None
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancels all and waits for their end."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        for task in tasks:
            try:
                await task
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
            except Exception:  # already told by _ended
                continue

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            message = f"client task {task.get_name()} died"
            task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})


def guarded(told: Callable[..., R], *arguments: Any) -> R | None:
    """Calls what a caller gave to be told something. What it raises keeps nobody else from being told: it goes to the loop's
    exception handler, and None is returned."""
    try:
        return told(*arguments)
    except Exception as error:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": f"{told!r} raised when it was told", "exception": error})
        return None


class Monotonic(Protocol):
    """The part of `ports.Clock` that a client needs."""

    def monotonic(self) -> float:
        """Seconds; never goes back."""


class LoopClock:
    """The running loop's own clock, so that deadlines and timers agree."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()
