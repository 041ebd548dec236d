"""The twins of grpc's two ends: `SimChannel` is a `ports.Channel`, `SimServer` what `node.app.Ports.serve` makes.

They keep the laws that `cluster.wire` and `node.transport.server` keep over grpc: every message is serialised and parsed;
a handler's TenfoldError reaches the caller, any other error as INTERNAL; a broken connection says nothing about what the
other end did; only a connection that was never made is sure not to have sent; a stream has a window, so that a writer
waits for a reader that does not read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from chaos.sim.loop import PROCESS, Process
from chaos.sim.network import Connection, Network
from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ChannelBroken, Handlers
from cluster.wire.services import METHODS, Method, methods_of

WINDOW_BYTES = 64 * 1024
RECONNECT_S = (0.05, 0.2)
MESSAGE_CHARACTERS_MAX = 1024


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
            _wake(self.waiter)

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
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
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
        await asyncio.sleep(0)

    def _pack(self, message: Any) -> bytes:
        data: bytes = message.SerializeToString()
        if len(data) > self.network.limits.message_bytes_max:
            raise TenfoldError(Code.INVALID_ARGUMENT, "message: larger than a message may be")
        return data

    def close_requests(self) -> None:
        self.connection.transmit(self.connection.forth, lambda _: self.requests.end(None), b"")

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
        await asyncio.sleep(0)

    def answer(self, message: Any) -> None:
        """The only reply, and the good end."""
        self.connection.transmit(self.connection.back, self._answered, self._pack_reply(message))

    def _pack_reply(self, message: Any) -> bytes:
        data: bytes = message.SerializeToString()
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

    async def send_all(self, service: str, method: str, requests: AsyncIterator[Any], *, timeout_s: float) -> Any:
        call: Call | None = None
        writing: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(timeout_s):
                call = await self.begin(METHODS[service, method], timeout_s)
                call.open()
                writing = asyncio.get_running_loop().create_task(_write_all(call, requests), name="send all")
                return await _only(call)
        except TimeoutError:
            raise TimeoutError("no answer within the deadline") from None
        finally:
            if call is not None:
                call.cancel()
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

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


async def _write_all(call: Call, requests: AsyncIterator[Any]) -> None:
    try:
        async for request in requests:
            if call.replies.ended:
                return
            await call.send(request)
    except Exception as error:
        call.cancel()
        call.replies.error = error
        raise
    call.close_requests()


class SimContext:
    """What a handler is told of its caller; see `node.transport.context`."""

    __slots__ = ("_deadline_s", "_task", "cancelled", "ended_here", "peer")

    def __init__(self, call: Call, task: asyncio.Task[None]) -> None:
        self.cancelled = False
        self.ended_here = False
        self.peer = call.connection.client.host
        loop = asyncio.get_running_loop()
        self._deadline_s = None if call.timeout_s is None else loop.time() + call.timeout_s
        self._task = task

    def remaining_s(self) -> float | None:
        return None if self._deadline_s is None else self._deadline_s - asyncio.get_running_loop().time()

    def cancel(self) -> None:
        self.ended_here = True
        self._task.cancel()


class _Requests:
    """The requests of a stream, as its handler reads them."""

    def __init__(self, call: Call) -> None:
        self._requests = call.requests
        self._parse = call.method.request.FromString

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        data = await self._requests.get()
        if data is None:
            raise StopAsyncIteration
        return self._parse(data)


class SimServer:
    """Serves handlers at an address for the process that makes it; see `node.transport.server`. `bug` is told of every
    exception of a handler that is no TenfoldError."""

    def __init__(
        self, network: Network, handlers: Handlers, address: str, limits: Limits, bug: Callable[[str, Exception], None]
    ) -> None:
        process = PROCESS.get()
        assert process is not None, "a server belongs to a process"
        self.process: Process = process
        self.address = address
        self._network = network
        self._limits = limits
        self._bug = bug
        self._functions = {
            (service, each.name): getattr(handler, each.attribute)
            for service, handler in handlers
            for each in methods_of(service)
        }
        self._calls: dict[asyncio.Task[None], asyncio.TimerHandle | None] = {}  # with their deadlines
        self._streams: dict[asyncio.Task[None], asyncio.TimerHandle | None] = {}
        self._stopping = False

    async def start(self) -> int:
        """The port. OSError when something listens there."""
        if self.address in self._network.listening:
            raise OSError(f"cannot listen on {self.address}: the port is taken")
        self._network.listening[self.address] = self
        return int(self.address.rpartition(":")[2])

    async def stop(self, grace_s: float) -> None:
        self._stopping = True
        for task in list(self._streams):
            task.cancel()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._calls and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        if self._network.listening.get(self.address) is self:
            del self._network.listening[self.address]

    def accept(self, call: Call) -> None:
        method = call.method
        single = not (method.client_streaming or method.server_streaming)
        held = self._calls if single else self._streams
        most = self._limits.calls_in_flight_max if single else self._limits.watches_max + 4 * self._limits.nodes_max
        if self._stopping:
            call.finish(TenfoldError(Code.SHUTTING_DOWN))
        elif len(held) >= most:
            call.finish(TenfoldError(Code.OVERLOADED, f"{'calls in flight' if single else 'streams open'}: {most}"))
        else:
            loop = asyncio.get_running_loop()
            task = call.task = loop.create_task(self._serve(call), name="serve")
            held[task] = None if call.timeout_s is None else loop.call_later(call.timeout_s, task.cancel)
            task.add_done_callback(self._served_single if single else self._served_stream)

    def _served_single(self, task: asyncio.Task[None]) -> None:
        timer = self._calls.pop(task)
        if timer is not None:
            timer.cancel()

    def _served_stream(self, task: asyncio.Task[None]) -> None:
        timer = self._streams.pop(task)
        if timer is not None:
            timer.cancel()

    async def _serve(self, call: Call) -> None:
        task = asyncio.current_task()
        assert task is not None
        context = SimContext(call, task)
        try:
            await self._run(call, context)
            return
        except TenfoldError as raised:
            plain = {k: v for k, v in raised.details.items() if isinstance(v, str | int | bool)}
            error: Exception = TenfoldError(raised.code, raised.message[:MESSAGE_CHARACTERS_MAX], **plain)
        except asyncio.CancelledError:
            if not (self._stopping or context.ended_here) or self.process.dead:
                raise
            task.uncancel()
            error = TenfoldError(Code.SHUTTING_DOWN if self._stopping else Code.UNAVAILABLE)
        except Exception as raised:
            if not self.process.dead:
                self._bug(call.method.path, raised)
            error = TenfoldError(Code.INTERNAL, f"{call.method.path}: {type(raised).__name__}")
        finally:
            context.cancelled = True
        call.finish(error)

    async def _run(self, call: Call, context: SimContext) -> None:
        """Until the handler has ended and its good end is on its way."""
        method = call.method
        function = self._functions[method.service, method.name]
        if method.client_streaming:
            requests: Any = _Requests(call)
        else:
            requests = method.request.FromString(call.requests.messages.popleft())
        if not method.server_streaming:
            call.answer(await function(requests, context))
            return
        replies = function(requests, context)
        try:
            async for reply in replies:
                await call.reply(reply)
        finally:
            await replies.aclose()
        call.finish(None)
