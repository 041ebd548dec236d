"""A command that undoes what it did, or stops what it started, when it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from client.cli.output import note

R = TypeVar("R")


async def until_signalled(work: Coroutine[Any, Any, R], told: str) -> R:
    """Runs `work`. The first SIGTERM or SIGINT cancels it, with `told` as a note, and no other keeps it from undoing what
    it has to undo; then KeyboardInterrupt."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if not task.cancelling():
            task.cancel()
            note(told)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
