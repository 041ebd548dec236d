"""What a caller waits for. Built once per operation or batch; its future always gets a result, an error being one, so that a
caller who went away leaves no unretrieved exception behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.errors import TenfoldError
from proto.gen import entry_pb2, kv_pb2, node_pb2

FENCE_BYTES = 4  # around a fence in its sub-request


class Written(NamedTuple):
    """Results of the operations from `offset` on; None after plain puts, whose version is `log_index`."""

    results: Sequence[kv_pb2.KvOpResult] | None
    offset: int
    log_index: int


class Got(NamedTuple):
    """Items from `offset` on, one per key asked, read at `log_index`, at most `stale_ms` old."""

    items: Sequence[kv_pb2.KeyValue]
    offset: int
    log_index: int
    stale_ms: int


class Pending:
    """`size` counts bytes on the wire, `count` operations; `error` is how its last attempt failed."""

    __slots__ = ("count", "deadline", "error", "future", "left", "size")

    def __init__(self, future: asyncio.Future[Any], deadline: float, size: int, count: int) -> None:
        self.future = future
        self.deadline = deadline
        self.size = size
        self.count = count
        self.error: TenfoldError | None = None
        self.left = False


class Write(Pending):
    """Operations that are joined with others into one command. Future: Written."""

    __slots__ = ("keys", "ops")
    capability = "kv"

    def __init__(
        self, future: asyncio.Future[Any], deadline: float, size: int, ops: list[kv_pb2.KvOp], keys: list[bytes]
    ) -> None:
        super().__init__(future, deadline, size, len(ops))
        self.ops = ops
        self.keys = keys


class Command(Pending):
    """A command that is a sub-request of its own, perhaps on conditions. Future: SubReply."""

    __slots__ = ("body", "capability", "fences")

    def __init__(
        self,
        future: asyncio.Future[Any],
        deadline: float,
        capability: str,
        body: bytes,
        count: int,
        fences: Sequence[entry_pb2.Fence] = (),
    ) -> None:
        super().__init__(future, deadline, len(body) + sum(fence.ByteSize() + FENCE_BYTES for fence in fences), count)
        self.capability = capability
        self.body = body
        self.fences = fences


class Get(Pending):
    """Keys to read, joined with those of others. An answer may stop early where it would grow too large: `items` has come,
    `keys` is still to be asked. Future: Got."""

    __slots__ = ("consistency", "items", "keys")

    def __init__(
        self,
        future: asyncio.Future[Any],
        deadline: float,
        size: int,
        keys: list[bytes],
        consistency: node_pb2.Consistency.ValueType,
    ) -> None:
        super().__init__(future, deadline, size, len(keys))
        self.keys = keys
        self.items: list[kv_pb2.KeyValue] = []
        self.consistency = consistency


class Query(Pending):
    """A query that is a sub-request of its own; its answer weighs at most `reply_bytes`. Future: SubReply."""

    __slots__ = ("body", "capability", "consistency", "reply_bytes")

    def __init__(
        self,
        future: asyncio.Future[Any],
        deadline: float,
        capability: str,
        body: bytes,
        consistency: node_pb2.Consistency.ValueType,
        reply_bytes: int,
    ) -> None:
        super().__init__(future, deadline, len(body), 1)
        self.reply_bytes = reply_bytes
        self.capability = capability
        self.body = body
        self.consistency = consistency
