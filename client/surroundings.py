"""What every facade of a client stands on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from client.batcher import Batcher
from client.router import Router
from client.tasks import Monotonic, Tasks
from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ports import Random


@dataclass(frozen=True, slots=True)
class Surroundings:
    router: Router
    batcher: Batcher
    tasks: Tasks
    clock: Monotonic
    random: Random
    limits: Limits
    deadline_s: float

    def deadline(self, deadline_s: float | None) -> float:
        """The moment on the clock. DeadlinePassed if it is no later than now: nothing was sent."""
        left_s = self.deadline_s if deadline_s is None else deadline_s
        if not left_s > 0:
            raise TenfoldError(Code.DEADLINE_PASSED)
        if left_s * 1000 > self.limits.deadline_ms_max:
            raise invalid("deadline_s", f"{left_s:g}, must be at most {self.limits.deadline_ms_max / 1000:g}")
        return self.clock.monotonic() + left_s

    def future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()
