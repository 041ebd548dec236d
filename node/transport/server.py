"""The grpc server of a node: plain handler objects on one side, the descriptors on the other.

A handler has one async method per RPC in snake case: `async def call(self, request, context)` for a single reply, an
async generator where replies stream, and an async iterator in place of the request where requests stream. It never sees
grpc, so the simulator calls the same methods. A `TenfoldError` that leaves a handler reaches the caller as itself; any
other exception is a bug, logged here, and reaches the caller as INTERNAL.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT, Limits
from cluster.ports import Handlers
from cluster.wire.services import Method, methods_of
from cluster.wire.status import to_status
from node.transport.context import Context


def options(limits: Limits) -> list[tuple[str, Any]]:
    """The grpc arguments of the server. Port reuse is off: two nodes on one port must not share its connections."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", limits.frame_bytes_max),
        ("grpc.keepalive_time_ms", limits.keepalive_ms),
        ("grpc.keepalive_timeout_ms", 2 * limits.keepalive_ms),
        ("grpc.http2.ping_timeout_ms", 2 * limits.keepalive_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.keepalive_ms // 2),
        ("grpc.http2.max_ping_strikes", 0),
    ]


class _RequestStream:
    """The requests of one stream, without grpc's exceptions: a broken stream ends the iteration."""

    def __init__(self, grpc_context: Any) -> None:
        self._context = grpc_context

    def __aiter__(self) -> _RequestStream:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class Server:
    """Serves `handlers` at `address` (host:port; port 0 takes a free one). Make it inside the running loop.

    At most `limits.calls_in_flight_max` single-reply calls are served at once, and as many streams as watches and peers
    may have; more are refused with OVERLOADED before their handler is reached.
    """

    def __init__(self, handlers: Handlers, *, address: str, limits: Limits = DEFAULT, log: Any = None) -> None:
        asyncio.get_running_loop()
        self.address = address
        self._log = log if log is not None else structlog.get_logger()
        self._calls = _Bound(limits.calls_in_flight_max, "calls in flight")
        self._streams = _Bound(limits.watches_max + 4 * limits.nodes_max, "streams open")
        self._stream_tasks: dict[asyncio.Task[Any], None] = {}
        self._stopping = False
        served = {methods_of(service)[0].service_full_name: self._table(service, each) for service, each in handlers}
        self._services = list(served)
        self._health: Any = health_aio.HealthServicer()
        self._server: Any = grpc.aio.server(options=options(limits))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for full_name, table in served.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(full_name, table),))

    async def start(self) -> int:
        """Binds and serves; the actual port. OSError naming the address where it cannot be bound."""
        host, _, number = self.address.rpartition(":")
        if not host or not number.isdecimal() or int(number) > 65_535:
            raise OSError(errno.EINVAL, f"cannot listen on {self.address}: it must be host:port")
        try:
            port: int = self._server.add_insecure_port(self.address)
        except RuntimeError:
            raise _why_not_bound(host.strip("[]"), int(number)) from None
        await self._server.start()
        for full_name in self._services:
            await self._health.set(full_name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, takes no new calls, ends streams with SHUTTING_DOWN, gives calls `grace_s` to finish."""
        self._stopping = True
        await self._health.enter_graceful_shutdown()
        for task in list(self._stream_tasks):
            task.cancel()
        await self._server.stop(grace_s)

    def _table(self, service: str, handler: object) -> dict[str, Any]:
        """AttributeError names a method the handler lacks."""
        return {each.name: self._rpc_handler(each, getattr(handler, each.attribute)) for each in methods_of(service)}

    def _rpc_handler(self, method: Method, function: Callable[..., Any]) -> Any:
        serializers = {
            "request_deserializer": method.request.FromString,
            "response_serializer": method.reply.SerializeToString,
        }
        if method.server_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.client_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(method, function), **serializers)
        return grpc.unary_unary_rpc_method_handler(self._single(method, function), **serializers)

    def _single(self, method: Method, function: Callable[..., Any]) -> Callable[..., Any]:
        bound = self._calls

        async def serve(request: Any, grpc_context: Any) -> Any:
            if bound.full():
                await self._refuse(grpc_context, bound.error())
            if self._stopping:
                await self._refuse(grpc_context, TenfoldError(Code.SHUTTING_DOWN))
            bound.used += 1
            try:
                return await function(request, Context(grpc_context))
            except TenfoldError as error:
                problem = error
            except Exception as error:
                problem = self._bug(method, error)
            finally:
                bound.used -= 1
            await self._refuse(grpc_context, problem)

        return serve

    def _streaming(self, method: Method, function: Callable[..., Any]) -> Callable[..., Any]:
        async def serve(request: Any, grpc_context: Any) -> None:
            if self._streams.full():
                await self._refuse(grpc_context, self._streams.error())
            task = asyncio.current_task()
            assert task is not None, "grpc.aio runs every handler in a task"
            self._stream_tasks[task] = None
            self._streams.used += 1
            context = Context(grpc_context, task.cancel)
            try:
                requests = _RequestStream(grpc_context) if method.client_streaming else request
                await _pour(function(requests, context), grpc_context)
                return
            except TenfoldError as error:
                problem = error
            except asyncio.CancelledError:
                if not (self._stopping or context.ended_here):
                    raise
                task.uncancel()  # grpc would tell the caller nothing
                problem = TenfoldError(Code.SHUTTING_DOWN if self._stopping else Code.UNAVAILABLE)
            except Exception as error:
                problem = self._bug(method, error)
            finally:
                self._streams.used -= 1
                del self._stream_tasks[task]
            await self._refuse(grpc_context, problem)

        return serve

    async def _refuse(self, grpc_context: Any, error: TenfoldError) -> None:
        status, text, trailing = to_status(error)
        await grpc_context.abort(status, text, trailing)

    def _bug(self, method: Method, error: Exception) -> TenfoldError:
        self._log.error("handler failed", method=method.path, exc_info=error)
        return TenfoldError(Code.INTERNAL, f"{method.path}: {type(error).__name__}")


def _why_not_bound(host: str, port: int) -> OSError:
    """grpc says only that it failed; the kernel says why."""
    what = f"cannot listen on {host}:{port}"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(target)
    except OSError as error:
        return OSError(error.errno, f"{what}: {error.strerror}")
    return OSError(errno.EADDRINUSE, f"{what}: the port is taken")


class _Bound:
    """How many of something may be open at once."""

    def __init__(self, most: int, what: str) -> None:
        self.used = 0
        self._most = most
        self._what = what

    def full(self) -> bool:
        return self.used >= self._most

    def error(self) -> TenfoldError:
        return TenfoldError(Code.OVERLOADED, f"{self._what}: {self._most}")


async def _pour(replies: AsyncIterator[Any], grpc_context: Any) -> None:
    """Writes every reply. The generator is closed before the call ends, so that its clean-up is over when we say so."""
    try:
        async for reply in replies:
            await grpc_context.write(reply)
    finally:
        close = getattr(replies, "aclose", None)
        if close is not None:
            await close()
