"""The twin of `cluster.wire`: a `ports.Channel` over simulated connections.

It keeps the laws that the real one keeps over grpc: every message is serialised and parsed; a handler's TenfoldError reaches
the caller, any other error as INTERNAL; a broken connection says nothing about what the other end did; only a connection
that was never made is sure not to have sent; a stream has a window, so that a writer waits for a reader that does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from chaos.sim.call import Call
from chaos.sim.loop import PROCESS, Process
from chaos.sim.network import Connection, Network
from cluster.ports import ChannelBroken
from cluster.wire.services import METHODS, Method

RECONNECT_S = (0.05, 0.2)


class SimStream:
    """A bidirectional stream that opens at its first use."""

    def __init__(self, channel: SimChannel, method: Method) -> None:
        self._channel = channel
        self._method = method
        self._call: Call | None = None
        self._cancelled = False

    async def write(self, message: Any) -> None:
        call = self._call
        if call is None or self._cancelled:
            call = await self._opened()
        replies = call.replies
        if not replies.ended:
            await call.send(message)
        if replies.ended:
            raise replies.error or ChannelBroken("the stream has ended")

    async def read(self) -> Any | None:
        return await (await self._opened()).read()

    def cancel(self) -> None:
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    async def _opened(self) -> Call:
        if self._call is None and not self._cancelled:
            self._call = await self._channel.begin(self._method, None)
            self._call.open()
        if self._cancelled or self._call is None:
            if self._call is not None:
                self._call.cancel()
            raise ChannelBroken("the stream was cancelled")
        return self._call


class SimChannel:
    """A `ports.Channel` from the process that makes it to an address."""

    def __init__(self, network: Network, address: str) -> None:
        process = PROCESS.get()
        assert process is not None, "a channel belongs to a process"
        self._network = network
        self._process: Process = process
        self._address = address
        self._connection: Connection | None = None
        self._connecting: asyncio.Future[None] | None = None
        self._retry_at = float("-inf")
        self._closed = False

    async def call(self, service: str, method: str, request: Any, *, timeout_s: float) -> Any:
        loop = asyncio.get_running_loop()
        due = loop.time() + timeout_s
        call = await self._begin_within(METHODS[service, method], timeout_s)
        timer = loop.call_at(due, call.expire)
        try:
            call.open(request)
            return await _only(call)
        finally:
            timer.cancel()
            call.cancel()

    async def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        call = await self.begin(METHODS[service, method], None)
        try:
            call.open(request)
            while (reply := await call.read()) is not None:
                yield reply
        finally:
            call.cancel()

    def stream(self, service: str, method: str) -> SimStream:
        return SimStream(self, METHODS[service, method])

    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.reset()

    async def begin(self, method: Method, timeout_s: float | None) -> Call:
        """A call that is not open yet."""
        connection = self._connection
        if connection is None or self._closed or not connection.open:
            connection = await self._connected()
        return Call(self._network, connection, self._network.listening.get(self._address), method, timeout_s)

    async def _begin_within(self, method: Method, timeout_s: float) -> Call:
        if self._connection is not None and self._connection.open:
            return await self.begin(method, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.begin(method, timeout_s)
        except TimeoutError:
            raise TimeoutError("no answer within the deadline") from None

    async def _connected(self) -> Connection:
        while True:
            if self._closed:
                raise ChannelBroken(f"{self._address}: the channel is closed", sent=False)
            if self._connection is not None and self._connection.open:
                return self._connection
            if self._connection is not None and not self._noticed(self._connection):
                return self._connection
            if self._connecting is None:
                break
            await asyncio.shield(self._connecting)
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            await asyncio.sleep(0)
            raise self._refused()
        connecting = self._connecting = loop.create_future()
        try:
            self._connection = await self._network.connect(self._process, self._address, asyncio.sleep)
        finally:
            self._connecting = None
            connecting.set_result(None)
        if self._connection is None:
            self._retry_at = loop.time() + self._network.pause_s(RECONNECT_S)
            raise self._refused()
        return await self._connected()

    def _noticed(self, connection: Connection) -> bool:
        return connection.told(self._process)

    def _refused(self) -> ChannelBroken:
        return ChannelBroken(f"failed to connect to all addresses: {self._address}", sent=False)


async def _only(call: Call) -> Any:
    """The single reply, once the call has ended well."""
    reply = await call.read()
    if reply is None:
        raise ChannelBroken("the call ended without a reply")
    await call.replies.get()
    return reply
