"""What every facade of a client stands on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from client.arguments import seconds
from client.batcher import Batcher
from client.router import Router
from client.tasks import Monotonic, Tasks
from cluster.errors import Code, TenfoldError
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
    identity: Random
    """Draws what no two clients may have in common, though one was copied from the other by a fork."""

    def deadline(self, deadline_s: float | None) -> float:
        """The moment on the clock. DeadlinePassed if it is no later than now: nothing was sent. InvalidArgument."""
        left_s = self.deadline_s if deadline_s is None else seconds(deadline_s, "deadline_s", self.limits)
        if not left_s > 0:
            raise TenfoldError(Code.DEADLINE_PASSED, "the deadline had passed before the operation was tried")
        return self.clock.monotonic() + left_s

    def future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()
