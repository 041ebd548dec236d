"""The server's promises: bounds, health, errors, and an end that leaves nothing hanging."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace

import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.ports import ChannelBroken
from cluster.wire.channel import dial
from node.transport.server import Server
from proto.gen import meta_pb2, node_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Gate:
    """A Node whose calls wait until they are let go."""

    def __init__(self) -> None:
        self.entered = 0
        self.open = asyncio.Event()
        self.changed = asyncio.Event()
        self.watch_cleaned = asyncio.Event()
        self.context = None

    async def until_entered(self, count: int) -> None:
        while self.entered < count:
            self.changed.clear()
            await self.changed.wait()

    async def call(self, request, context):
        self.entered += 1
        self.context = context
        self.changed.set()
        await self.open.wait()
        return node_pb2.CallReply(epoch=1)

    async def watch(self, request, context):
        try:
            self.entered += 1
            self.changed.set()
            yield node_pb2.WatchReply(index=1)
            await asyncio.Event().wait()
        finally:
            self.watch_cleaned.set()

    async def watch_map(self, request, context):
        yield meta_pb2.ShardMap()
        raise ZeroDivisionError("a secret")

    async def status(self, request, context):
        raise ZeroDivisionError("a secret")

    async def stop(self, request, context):
        return node_pb2.StopReply()

    join = drain = remove = rebalance = driver_status = stop


class Running:
    def __init__(self, gate: Gate, server: Server, port: int) -> None:
        self.gate, self.server, self.port = gate, server, port
        self.channel = dial(f"127.0.0.1:{port}")

    def call(self) -> asyncio.Task:
        return asyncio.ensure_future(self.channel.call("Node", "Call", node_pb2.CallRequest(), timeout_s=5))


@pytest.fixture
async def running(request):
    gate = Gate()
    limits = replace(DEFAULT, **getattr(request, "param", {}))
    server = Server([("Node", gate)], address="127.0.0.1:0", limits=limits)
    each = Running(gate, server, await server.start())
    yield each
    await each.channel.close()
    await server.stop(0)


async def health(port: int, service: str) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_a_taken_port_is_named(running) -> None:
    address = f"127.0.0.1:{running.port}"
    second = Server([], address=address)
    with pytest.raises(OSError, match=address) as caught:
        await second.start()
    assert caught.value.errno == errno.EADDRINUSE
    await second.stop(0)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:http", "127.0.0.1:70000"])
async def test_an_address_that_is_none_is_named(address: str) -> None:
    server = Server([], address=address)
    with pytest.raises(OSError, match=address):
        await server.start()
    await server.stop(0)


def test_a_handler_must_have_every_method() -> None:
    class Half:
        async def call(self, request, context): ...

    async def make() -> None:
        Server([("Node", Half())], address="127.0.0.1:0")

    with pytest.raises(AttributeError, match="no attribute"):
        asyncio.run(make())


async def test_health_serves_each_service_and_all(running) -> None:
    assert await health(running.port, "tenfold.v1.Node") == SERVING
    assert await health(running.port, "") == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(running.port, "tenfold.v1.Peer")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_says_not_serving_once_the_end_begins(running) -> None:
    call = running.call()
    await running.gate.until_entered(1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="tenfold.v1.Node"))
        assert (await watch.read()).status == SERVING
        stopping = asyncio.ensure_future(running.server.stop(2))
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
    running.gate.open.set()
    assert (await call).epoch == 1
    await stopping


async def test_stopping_lets_calls_finish_and_ends_streams_at_once(running) -> None:
    call = running.call()
    replies = running.channel.replies("Node", "Watch", node_pb2.WatchRequest())
    await anext(replies)
    await running.gate.until_entered(2)
    stopping = asyncio.ensure_future(running.server.stop(5))
    with pytest.raises(TenfoldError) as caught:
        await anext(replies)
    assert caught.value.code is Code.SHUTTING_DOWN
    assert running.gate.watch_cleaned.is_set()
    assert not call.done() and not stopping.done()
    running.gate.open.set()
    assert (await call).epoch == 1
    async with asyncio.timeout(1):
        await stopping


async def test_grace_ends_and_calls_break(running) -> None:
    call = running.call()
    await running.gate.until_entered(1)
    await running.server.stop(0.1)
    with pytest.raises(ChannelBroken) as caught:
        await call
    assert caught.value.sent
    while not running.gate.context.cancelled:
        await asyncio.sleep(0)


@pytest.mark.parametrize("running", [{"calls_in_flight_max": 3}], indirect=True)
async def test_calls_over_the_bound_are_refused_and_room_comes_back(running) -> None:
    held = [running.call() for _ in range(3)]
    await running.gate.until_entered(3)
    with pytest.raises(TenfoldError) as caught:
        await running.call()
    assert caught.value.code is Code.OVERLOADED
    assert running.gate.entered == 3
    held[0].cancel()
    while True:  # the server learns of the cancellation a moment later
        running.gate.open.set()
        try:
            assert (await running.call()).epoch == 1
            break
        except TenfoldError as error:
            assert error.code is Code.OVERLOADED
    assert [(await each).epoch for each in held[1:]] == [1, 1]


@pytest.mark.parametrize("running", [{"watches_max": 1, "nodes_max": 1}], indirect=True)
async def test_streams_over_the_bound_are_refused(running) -> None:
    streams = [running.channel.replies("Node", "Watch", node_pb2.WatchRequest()) for _ in range(6)]
    for each in streams[:5]:
        await anext(each)
    with pytest.raises(TenfoldError) as caught:
        await anext(streams[5])
    assert caught.value.code is Code.OVERLOADED
    for each in streams:
        await each.aclose()


async def test_a_bug_is_logged_here_and_told_without_its_text() -> None:
    with structlog.testing.capture_logs() as logs:
        server = Server([("Node", Gate())], address="127.0.0.1:0")
        channel = dial(f"127.0.0.1:{await server.start()}")
        with pytest.raises(TenfoldError) as single:
            await channel.call("Node", "Status", node_pb2.StatusRequest(), timeout_s=5)
        replies = channel.replies("Node", "WatchMap", node_pb2.MapRequest())
        await anext(replies)
        with pytest.raises(TenfoldError) as streamed:
            await anext(replies)
        await channel.close()
        await server.stop(0)
    for caught in (single, streamed):
        assert caught.value.code is Code.INTERNAL and not caught.value.definite
        assert "secret" not in caught.value.message and "ZeroDivisionError" in caught.value.message
    assert [line["method"] for line in logs] == ["/tenfold.v1.Node/Status", "/tenfold.v1.Node/WatchMap"]
    assert all("a secret" in str(line["exc_info"]) for line in logs)


async def test_a_handler_sees_who_calls_and_how_long_it_waits(running) -> None:
    call = asyncio.ensure_future(running.channel.call("Node", "Call", node_pb2.CallRequest(), timeout_s=3))
    await running.gate.until_entered(1)
    context = running.gate.context
    assert context.peer.startswith("ipv4:127.0.0.1:")
    assert 2 < context.remaining_s() < 3.2  # grpc's clock is a coarse one
    assert not context.cancelled
    running.gate.open.set()
    await call
