"""One call over a simulated connection, at both ends: what it has sent, and what has arrived."""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from chaos.sim.network import Connection, Network
from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from cluster.wire.services import Method

if TYPE_CHECKING:
    from chaos.sim.server import SimServer

WINDOW_BYTES = 64 * 1024


class Half:
    """What one end of a call has received: messages, then an end, which may be an error."""

    __slots__ = ("ended", "error", "messages", "unread", "waiter", "window")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.ended = False
        self.error: Exception | None = None
        self.unread = 0  # bytes sent and not read yet
        self.waiter: asyncio.Future[None] | None = None
        self.window: asyncio.Future[None] | None = None

    def put(self, data: bytes) -> None:
        if not self.ended:
            self.messages.append(data)
            waiter = self.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def end(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended, self.error = True, error
            _wake(self.waiter)
            _wake(self.window)

    async def get(self) -> bytes | None:
        """The next message; None at a good end, else the error is raised."""
        while not self.messages:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            waiter = self.waiter = asyncio.get_running_loop().create_future()
            await waiter
        data = self.messages.popleft()
        self.unread -= len(data)
        if self.window is not None and self.unread <= WINDOW_BYTES:
            _wake(self.window)
        return data

    async def admit(self) -> None:
        """Waits until the window takes more."""
        while self.unread > WINDOW_BYTES and not self.ended:
            self.window = asyncio.get_running_loop().create_future()
            await self.window
        self.window = None


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """Lets others run, as asyncio.sleep(0) does, at half its price."""
    yield


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Call:
    """One call. `requests` is read at the server, `replies` at the client.

    What is single travels as grpc sends it: one request with the call's opening, one reply with the call's end."""

    __slots__ = ("connection", "method", "network", "replies", "requests", "server", "task", "timeout_s")

    def __init__(
        self,
        network: Network,
        connection: Connection,
        server: SimServer | None,
        method: Method,
        timeout_s: float | None,
    ) -> None:
        self.network = network
        self.connection = connection
        self.server = server  # None: the connection is about to be found broken
        self.method = method
        self.timeout_s = timeout_s
        self.requests = Half()
        self.replies = Half()
        self.task: asyncio.Task[None] | None = None
        connection.calls[self] = None

    # -- the client's end ----------------------------------------------------------------------------------------------

    def open(self, request: Any = None) -> None:
        """Begins the call; with its only request where it has one."""
        data = b"" if request is None else self._pack(request)
        if self.server is not None:
            self.connection.transmit(self.connection.forth, self._accepted, data)

    def _accepted(self, data: bytes) -> None:
        assert self.server is not None
        if not self.method.client_streaming:
            self.requests.messages.append(data)
            self.requests.ended = True
        self.server.accept(self)

    async def send(self, message: Any) -> None:
        self.network.watch(self.connection.client.host, self.method.name, message)
        data = self._pack(message)
        requests = self.requests
        if requests.unread > WINDOW_BYTES:
            await requests.admit()
        requests.unread += len(data)
        self.connection.transmit(self.connection.forth, requests.put, data)
        await _turn()

    def _pack(self, message: Any) -> bytes:
        data: bytes = message.SerializeToString(deterministic=True)
        if len(data) > self.network.limits.message_bytes_max:
            raise TenfoldError(Code.INVALID_ARGUMENT, "message: larger than a message may be")
        return data

    async def read(self) -> Any | None:
        data = await self.replies.get()
        return None if data is None else self.method.reply.FromString(data)

    def expire(self) -> None:
        self.replies.end(TimeoutError("no answer within the deadline"))

    def cancel(self) -> None:
        """The caller gives up; the handler is told when that reaches it."""
        if not self.replies.ended:
            self.replies.end(ChannelBroken("the stream was cancelled"))
            self.connection.transmit(self.connection.forth, self._stop_handler, b"")
        self.connection.calls.pop(self, None)

    # -- the server's end ----------------------------------------------------------------------------------------------

    async def reply(self, message: Any) -> None:
        """One of many."""
        data = self._pack_reply(message)
        replies = self.replies
        if replies.unread > WINDOW_BYTES:
            await replies.admit()
        replies.unread += len(data)
        self.connection.transmit(self.connection.back, replies.put, data)
        await _turn()

    def answer(self, message: Any) -> None:
        """The only reply, and the good end."""
        self.connection.transmit(self.connection.back, self._answered, self._pack_reply(message))

    def _pack_reply(self, message: Any) -> bytes:
        data: bytes = message.SerializeToString(deterministic=True)
        if len(data) > self.network.limits.message_bytes_max:
            raise ChannelBroken("the reply is larger than a message may be")
        return data

    def _answered(self, data: bytes) -> None:
        self.replies.put(data)
        self._ended(None)

    def finish(self, error: Exception | None) -> None:
        self.connection.transmit(self.connection.back, lambda _: self._ended(error), b"")

    def _ended(self, error: Exception | None) -> None:
        self.replies.end(error)
        self.connection.calls.pop(self, None)

    def _stop_handler(self, _: bytes = b"") -> None:
        self.requests.end(None)
        if self.task is not None:
            self.task.cancel()

    def broken(self, at_client: bool) -> None:
        if at_client:
            self.replies.end(ChannelBroken("the connection broke"))
        else:
            self._stop_handler()
