"""Asks the cluster to change its members or its placement. Any node may be asked; the meta leader does it, and others say where it is.

The law: what is asked for here may be asked for twice, so an attempt whose outcome is unknown is repeated like one that was refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import Code, TenfoldError
from cluster.local.ask import Asker
from cluster.ports import ChannelBroken

TIMEOUT_S = 30.0
ATTEMPT_S = 5.0
PAUSE_S = 0.1
REDIRECTS_MAX = 3  # followed at once; then a pause, for two nodes may name each other for a while
LATE = (Code.DEADLINE_PASSED, Code.DEADLINE_EXCEEDED)


class Admin:
    """`addresses` are those of the nodes that run, looked up anew for each attempt."""

    def __init__(self, asker: Asker, addresses: Callable[[], Sequence[str]]) -> None:
        self._asker = asker
        self._addresses = addresses
        self._next = 0
        self._leader = ""  # where it last was

    async def ask(self, method: str, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """The reply of the meta leader. TenfoldError: what it refused with; Unavailable if no node runs; DeadlineExceeded with the
        last error if none answered as the leader in time, and then it may have been done or not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        last, redirects = "no node was asked", 0
        while (left := deadline - loop.time()) > 0:
            address = self._leader or self._another()
            try:
                reply = await self._asker.call(address, method, request, min(left, ATTEMPT_S))
            except TenfoldError as error:
                if not error.retriable and error.code not in LATE:
                    raise
                last = error.message
                self._leader = str(error.details.get("leader", "")) if error.code is Code.NOT_LEADER else ""
            except (ChannelBroken, TimeoutError) as failure:
                last, self._leader = str(failure) or "no answer", ""
            else:
                self._leader = address
                return reply
            redirects = redirects + 1 if self._leader else 0
            if not 1 <= redirects <= REDIRECTS_MAX:
                redirects, self._leader = 0, ""
                await asyncio.sleep(min(PAUSE_S, max(0.0, deadline - loop.time())))
        raise TenfoldError(
            Code.DEADLINE_EXCEEDED, f"{method}: no meta leader answered within {timeout_s:g} s; the last error: {last}"
        )

    def _another(self) -> str:
        """The next of those that run."""
        addresses = self._addresses()
        if not addresses:
            raise TenfoldError(Code.UNAVAILABLE, "no node of the cluster runs; `tenfold up` starts them")
        self._next += 1
        return addresses[self._next % len(addresses)]
