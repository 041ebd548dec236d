"""One step of a nemesis: on file before it is done, and after it how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from chaos.history import Recorder
from cluster.errors import TenfoldError

R = TypeVar("R")


class NeverHealed(Exception):
    """The cluster did not come back, or did not do what it was asked to, in the time it had."""


class Steps:
    """`told` takes one line a step, for a human."""

    def __init__(self, recorder: Recorder, told: Callable[[str], None]) -> None:
        self._recorder = recorder
        self._told = told

    async def take(self, f: str, node: str, work: Awaitable[R], *, within_s: float | None = None, note: str = "") -> R:
        """Does `work`, which is the fault or change `f` of `node`. NeverHealed if it fails or takes longer than `within_s`."""
        self._recorder.fault("invoke", f, node=node, note=note or None)
        try:
            async with asyncio.timeout(within_s):
                done = await work
        except TimeoutError:
            raise self._failed(f, node, f"not done within {within_s:g} s") from None
        except TenfoldError as error:
            raise self._failed(f, node, error.message) from error
        self._recorder.fault("ok", f, node=node)
        self._told(f"{f} {node}: done")
        return done

    def _failed(self, f: str, node: str, problem: str) -> NeverHealed:
        self._recorder.fault("fail", f, node=node, error=problem)
        return NeverHealed(f"{f} of {node} failed: {problem}")
