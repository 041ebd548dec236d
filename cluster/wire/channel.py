"""`ports.Channel` over grpc.aio, driven by the descriptors.

A channel belongs to the event loop it is made in (grpc.aio binds it there, and knows one loop a process), so it is made
by `dial` inside a running loop, never at import and never before a fork. Every channel has a subchannel pool of its own:
two channels to one address are two connections, which keeps bulk away from control. Backoff as measured: with grpc's
defaults a node that is back stays unreachable for four seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from cluster.limits import DEFAULT, Limits
from cluster.ports import ChannelBroken
from cluster.wire.services import method
from cluster.wire.status import from_rpc_error

RECONNECT_INITIAL_MS = 50
RECONNECT_MIN_MS = 100  # also grpc's bound on one connection attempt
RECONNECT_MAX_MS = 200


def options(limits: Limits) -> list[tuple[str, Any]]:
    """The grpc arguments of every channel."""
    return [
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_INITIAL_MS),
        ("grpc.min_reconnect_backoff_ms", RECONNECT_MIN_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.http2.bdp_probe", 0),  # else each message is answered by a ping to measure the line: dear when idle
        ("grpc.http2.lookahead_bytes", limits.frame_bytes_max),  # the window, which the probe would have grown
        ("grpc.keepalive_time_ms", limits.keepalive_ms),
        ("grpc.keepalive_timeout_ms", 2 * limits.keepalive_ms),
        ("grpc.http2.ping_timeout_ms", 2 * limits.keepalive_ms),  # without it the timeout above means a minute
        ("grpc.http2.max_pings_without_data", 0),  # as many as keepalive asks for; our server permits them
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def dial(address: str, limits: Limits = DEFAULT) -> GrpcChannel:
    """A fresh channel with a connection of its own, opened without waiting. RuntimeError outside a running loop."""
    return GrpcChannel(address, limits)


def _cancelled_from_outside() -> bool:
    """grpc.aio raises CancelledError both when our task is cancelled and when only the call or the channel is."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _opened(call: Any) -> bool:
    """Waits until the call is on its way; False if it ended before. grpc.aio's own write would wait for ever for a call
    that is cancelled while it still connects."""
    waiting = asyncio.ensure_future(call.wait_for_connection())
    call.add_done_callback(lambda _: waiting.cancel())
    try:
        await waiting
    except asyncio.CancelledError:
        if _cancelled_from_outside():
            raise
        return False
    return True


class GrpcStream:
    """A bidirectional stream. One reader and one writer at a time."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._open = False

    async def write(self, message: Any) -> None:
        """Returns once the transport has taken the message (flow control). ChannelBroken, TenfoldError."""
        try:
            if not self._open and not (await _opened(self._call)):
                await self._raise_status()
            self._open = True
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except (grpc.aio.InternalError, asyncio.InvalidStateError):  # the call has ended: its status says why
            await self._raise_status()
            raise ChannelBroken("the stream has ended") from None
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise ChannelBroken("the stream was cancelled") from None

    async def read(self) -> Any | None:
        """The next message; None when the other end closed the stream with OK. ChannelBroken, TenfoldError."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except grpc.aio.InternalError as error:
            raise ChannelBroken(str(error)) from None
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise ChannelBroken("the stream was cancelled") from None
        return None if message is grpc.aio.EOF else message

    def cancel(self) -> None:
        self._call.cancel()

    async def _raise_status(self) -> None:
        try:
            await self.read()
        except asyncio.InvalidStateError:
            raise ChannelBroken("the stream has ended") from None


class GrpcChannel:
    """A long-lived connection to one address that reconnects by itself. See `ports.Channel`; besides ChannelBroken and
    TimeoutError, calls raise the TenfoldError that the other end's handler raised. Close it before its loop ends."""

    def __init__(self, address: str, limits: Limits = DEFAULT) -> None:
        asyncio.get_running_loop()
        self.address = address
        self._channel: Any = grpc.aio.insecure_channel(address, options=options(limits))
        self._multicallables: dict[tuple[str, str], Any] = {}
        self._closed = False

    async def call(self, service: str, method: str, request: Any, *, timeout_s: float) -> Any:
        try:
            return await self._multicallable(service, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise ChannelBroken(f"{self.address}: the channel was closed") from None

    async def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        call = self._multicallable(service, method)(request)
        try:
            while (reply := await call.read()) is not grpc.aio.EOF:
                yield reply
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except grpc.aio.InternalError as error:
            raise ChannelBroken(str(error)) from None
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise ChannelBroken(f"{self.address}: the channel was closed") from None
        finally:
            call.cancel()

    def stream(self, service: str, method: str) -> GrpcStream:
        return GrpcStream(self._multicallable(service, method)())

    async def close(self) -> None:
        """Cancels what is open: its callers get ChannelBroken. May be called twice."""
        if not self._closed:
            self._closed = True
            await self._channel.close()

    def _multicallable(self, service: str, name: str) -> Any:
        if self._closed:
            raise ChannelBroken(f"{self.address}: the channel is closed", sent=False)
        found = self._multicallables.get((service, name))
        if found is None:
            found = self._multicallables[service, name] = self._make(service, name)
        return found

    def _make(self, service: str, name: str) -> Any:
        each = method(service, name)
        makers = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, True): self._channel.stream_stream,
        }
        maker = makers[each.client_streaming, each.server_streaming]
        return maker(
            each.path,
            request_serializer=each.request.SerializeToString,
            response_deserializer=each.reply.FromString,
        )
