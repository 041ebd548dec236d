"""What waits in a node for an answer: one latch per call from a client, one ticket per sub-request in it.

One future per call and no task per operation: the pump resolves tickets, the last one opens the latch.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.errors import Code
from node.machines.applier import Outcome
from proto.gen import entry_pb2


class Latch:
    """Opens when all its tickets are resolved, or at the deadline."""

    __slots__ = ("future", "remaining")

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.remaining = 0

    def count_down(self) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            self.open()

    def open(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Ticket:
    """One sub-request under way; `outcome` is set exactly once."""

    __slots__ = ("latch", "outcome", "stale_ms")

    def __init__(self, latch: Latch) -> None:
        self.latch = latch
        self.outcome: Outcome | None = None
        self.stale_ms = 0
        latch.remaining += 1

    def resolve(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.latch.count_down()

    def fail(self, code: Code, message: str = "") -> None:
        self.resolve(Outcome(int(code), message, b"", 0, 0))

    def expire(self) -> None:
        """The deadline came first."""
        self.fail(Code.DEADLINE_EXCEEDED)


class Proposal(Ticket):
    """A command on its way into the log. `index` 0: not proposed yet, so giving up is definite. `writes`: the keys it may
    write, or None where that cannot be said."""

    __slots__ = ("command", "index", "request", "size", "writes")

    def __init__(self, latch: Latch, request: entry_pb2.Request, command: Any, writes: Any) -> None:
        super().__init__(latch)
        self.request = request
        self.command = command
        self.writes = writes
        self.size = len(request.body) + 64
        if request.fences:
            self.size += sum(len(fence.name) + 16 for fence in request.fences)
        self.index = 0

    def expire(self) -> None:
        self.fail(Code.DEADLINE_EXCEEDED if self.index else Code.DEADLINE_PASSED)


class Read(Ticket):
    """A query that waits for its read index to be applied."""

    __slots__ = ("capability", "query")

    def __init__(self, latch: Latch, capability: str, query: Any) -> None:
        super().__init__(latch)
        self.capability = capability
        self.query = query

    def expire(self) -> None:
        self.fail(Code.DEADLINE_PASSED, "the read was not confirmed within the deadline")
