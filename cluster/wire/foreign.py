"""Unary calls to a service that is not of our protocol, with the caller's own messages: peers in a benchmark.

The same grpc arguments as our own channels have, so that a comparison compares servers and not connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from cluster.limits import DEFAULT, Limits
from cluster.wire.channel import options

Unary = Callable[[Any], Awaitable[Any]]


class ForeignChannel:
    """One connection to `address` (host:port), opened without waiting; bound to the running loop."""

    def __init__(self, address: str, limits: Limits = DEFAULT) -> None:
        self._channel: Any = grpc.aio.insecure_channel(address, options=options(limits))

    def unary(self, path: str, reply_type: Any) -> Unary:
        """A function from a request message to its reply. It raises grpc's own errors: nothing is known of the service."""
        call: Unary = self._channel.unary_unary(
            path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reply_type.FromString,
        )
        return call

    async def ready(self) -> None:
        """Returns once the connection stands; bound it by a timeout."""
        await self._channel.channel_ready()

    async def close(self) -> None:
        await self._channel.close()
