"""The twin of `node.transport.server`: what `node.app.Ports.serve` makes, with the same answers to errors, bounds and deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from chaos.sim.call import Call
from chaos.sim.loop import PROCESS, Process
from chaos.sim.network import Network
from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Handlers
from cluster.wire.services import methods_of

MESSAGE_CHARACTERS_MAX = 1024


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
