"""The twins of grpc's two ends over simulated connections: what callers and handlers may rely upon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from chaos.sim.channel import SimChannel
from chaos.sim.clock import HostClock
from chaos.sim.loop import Process, SimLoop, run
from chaos.sim.network import Network
from chaos.sim.server import SimServer
from chaos.sim.transcript import Transcript
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.ports import ChannelBroken
from proto.gen import node_pb2, peer_pb2

ADDRESS = "10.0.0.1:7400"


class Service:
    """Answers calls after a while, and echoes frames."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0

    async def call(self, request: node_pb2.CallRequest, context: Any) -> node_pb2.CallReply:
        self.calls += 1
        if request.principal == "refuse":
            raise TenfoldError(Code.OVERLOADED, "no room", shard=3)
        if request.principal == "bug":
            raise KeyError("bug")
        try:
            await asyncio.sleep(100 if request.principal == "hang" else 0.1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return node_pb2.CallReply(epoch=7)

    async def frames(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for frame in requests:
            yield frame

    def __getattr__(self, name: str) -> Any:
        return None


class World:
    def __init__(self) -> None:
        self.loop = SimLoop(3)
        self.network = Network(self.loop, Transcript(lambda: self.loop.now), 3, DEFAULT)
        self.service = Service()
        self.bugs: list[str] = []
        self.server = Process("n1", HostClock(lambda: self.loop.now))
        self.client = Process("c1", HostClock(lambda: self.loop.now))

    def play(self, scene: Callable[[SimChannel], Coroutine[Any, Any, Any]]) -> Any:
        async def serve() -> None:
            handlers = [("Node", self.service), ("Peer", self.service)]
            server = SimServer(self.network, handlers, ADDRESS, DEFAULT, lambda where, error: self.bugs.append(where))
            assert await server.start() == 7400

        async def act() -> Any:
            return await scene(SimChannel(self.network, ADDRESS))

        async def work() -> Any:
            await self.loop.start(self.server, serve(), "serve")
            return await self.loop.start(self.client, act(), "act")

        return run(self.loop, work())


async def call(channel: SimChannel, principal: str = "", timeout_s: float = 5.0) -> Any:
    return await channel.call("Node", "Call", node_pb2.CallRequest(principal=principal), timeout_s=timeout_s)


def test_a_call_is_answered() -> None:
    assert World().play(call).epoch == 7


def test_errors_of_handlers_reach_the_caller() -> None:
    world = World()

    async def scene(channel: SimChannel) -> None:
        with pytest.raises(TenfoldError, match="no room") as refused:
            await call(channel, "refuse")
        assert refused.value.code is Code.OVERLOADED and refused.value.details == {"shard": 3}
        with pytest.raises(TenfoldError) as bug:
            await call(channel, "bug")
        assert bug.value.code is Code.INTERNAL

    world.play(scene)
    assert world.bugs == ["/tenfold.v1.Node/Call"]


def test_a_deadline_cancels_the_handler() -> None:
    world = World()

    async def scene(channel: SimChannel) -> None:
        with pytest.raises(TimeoutError):
            await call(channel, "hang", timeout_s=1.0)
        await call(channel)

    world.play(scene)
    assert world.service.cancelled == 1


def test_a_dead_server_refuses_and_an_open_call_breaks() -> None:
    world = World()

    async def scene(channel: SimChannel) -> None:
        def die() -> None:
            world.network.gone(world.server, silent=False)
            world.loop.kill(world.server)

        world.loop.at(world.loop.now + 0.5, die)
        with pytest.raises(ChannelBroken) as broken:
            await call(channel, "hang")
        assert broken.value.sent
        with pytest.raises(ChannelBroken) as refused:
            await call(channel)
        assert not refused.value.sent

    world.play(scene)
    assert world.service.calls == 1


def test_what_a_cut_holds_back_comes_in_order_when_it_heals() -> None:
    world = World()

    async def scene(channel: SimChannel) -> list[int]:
        stream = channel.stream("Peer", "Frames")
        got: list[int] = []

        async def send(number: int) -> None:
            frame = peer_pb2.Frame()
            frame.heartbeat.incarnation = number
            await stream.write(frame)

        await send(1)
        first = await stream.read()
        assert first is not None
        got.append(first.heartbeat.incarnation)
        world.network.block("c1", "n1")
        for number in range(2, 6):
            await send(number)
        world.loop.at(world.loop.now + 1.0, world.network.unblock, "c1", "n1")
        before = world.loop.now
        for _ in range(4):
            frame = await stream.read()
            assert frame is not None
            got.append(frame.heartbeat.incarnation)
        assert world.loop.now - before >= 1.0
        return got

    assert world.play(scene) == [1, 2, 3, 4, 5]


def test_a_long_cut_breaks_the_stream() -> None:
    world = World()

    async def scene(channel: SimChannel) -> float:
        stream = channel.stream("Peer", "Frames")
        await stream.write(peer_pb2.Frame())
        assert await stream.read() is not None
        before = world.loop.now
        world.network.block("n1", "c1")
        with pytest.raises(ChannelBroken):
            await stream.read()
        return world.loop.now - before

    assert world.play(scene) == pytest.approx(3 * DEFAULT.keepalive_ms / 1000, abs=0.5)


def test_a_writer_waits_for_a_reader_that_does_not_read() -> None:
    world = World()

    async def scene(channel: SimChannel) -> int:
        world.network.block("c1", "n1")
        world.network.unblock("c1", "n1")
        stream = channel.stream("Peer", "Frames")
        frame = peer_pb2.Frame()
        frame.messages.add().entries.add(payload=bytes(40_000))
        written = 0
        try:
            async with asyncio.timeout(2.0):
                for _ in range(100):
                    await stream.write(frame)
                    written += 1
        except TimeoutError:
            pass
        return written

    assert 2 <= world.play(scene) < 20


def test_a_lingering_connection_delivers_late_what_a_new_one_has_overtaken() -> None:
    world = World()
    seen: list[str] = []
    answered = world.service.call

    async def call_seen(request: node_pb2.CallRequest, context: Any) -> node_pb2.CallReply:
        seen.append(request.principal)
        return await answered(request, context)

    world.service.call = call_seen  # type: ignore[method-assign]

    async def scene(channel: SimChannel) -> None:
        await call(channel, "first")
        before = world.loop.now
        old = asyncio.ensure_future(call(channel, "old"))
        await asyncio.sleep(0)
        world.network.linger("c1", "n1", 1.0)
        with pytest.raises(ChannelBroken) as broken:
            await old
        assert broken.value.sent
        await call(channel, "new")
        assert seen == ["first", "new"] and world.loop.now < before + 1.0
        while "old" not in seen:
            await asyncio.sleep(0.1)
        await call(channel, "last")

    world.play(scene)
    assert seen == ["first", "new", "old", "last"]
