"""An event loop whose clock jumps to the next timer, so that deadlines and backoffs cost no time and repeat exactly."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Nothing outside the loop ever happens: instead of waiting for it, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing will ever happen any more: a future is forgotten")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self.set_exception_handler(self._collect)
        self.problems: list[dict[str, Any]] = []

    def time(self) -> float:
        return self._jump.now

    def _collect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(context)


async def passes(seconds: float) -> None:
    """So much virtual time goes by, which costs none; no wait for something that another process does."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    gone = loop.create_future()
    loop.call_later(seconds, gone.set_result, None)
    await gone


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end; fails if any callback or task of it died."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        result = runner.run(work)
        assert not loop.problems, loop.problems
        return result
