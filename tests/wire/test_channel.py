"""The channel against a real server: what arrives, and what each way of failing means."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.ports import ChannelBroken
from cluster.wire.channel import dial
from proto.gen import meta_pb2, node_pb2, peer_pb2


def request(count: int = 0) -> node_pb2.CallRequest:
    return node_pb2.CallRequest(requests=[node_pb2.SubRequest(shard=i) for i in range(count)])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def hangs(request, context):
    await asyncio.Event().wait()


async def test_a_call_is_answered(serve, connect) -> None:
    _, port = await serve()
    reply = await connect(port).call("Node", "Call", request(3), timeout_s=5)
    assert reply == node_pb2.CallReply(epoch=3)


async def test_an_error_of_the_handler_reaches_the_caller(serve, connect, node) -> None:
    async def call(request, context):
        raise TenfoldError(Code.NOT_LEADER, "not me", leader="n2")

    node.call = call
    _, port = await serve()
    with pytest.raises(TenfoldError) as caught:
        await connect(port).call("Node", "Call", request(), timeout_s=5)
    assert (caught.value.code, caught.value.message) == (Code.NOT_LEADER, "not me")
    assert caught.value.details == {"leader": "n2"}


async def test_where_nobody_listens_nothing_was_sent(connect) -> None:
    with pytest.raises(ChannelBroken) as caught:
        await connect(free_port()).call("Node", "Call", request(), timeout_s=5)
    assert not caught.value.sent


async def test_a_deadline_is_a_timeout_and_ends_the_handler(serve, connect, node) -> None:
    ended = asyncio.Event()

    async def call(request, context):
        assert 0 < context.remaining_s() < 0.4
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    node.call = call
    _, port = await serve()
    with pytest.raises(TimeoutError):
        await connect(port).call("Node", "Call", request(), timeout_s=0.2)
    await ended.wait()


async def test_a_server_that_goes_away_leaves_the_outcome_open(serve, connect, node) -> None:
    entered = asyncio.Event()

    async def call(request, context):
        entered.set()
        await asyncio.Event().wait()

    node.call = call
    server, port = await serve()
    pending = asyncio.ensure_future(connect(port).call("Node", "Call", request(), timeout_s=5))
    await entered.wait()
    await server.stop(0)
    with pytest.raises(ChannelBroken) as caught:
        await pending
    assert caught.value.sent


async def test_cancelling_the_caller_is_a_cancellation(serve, connect, node) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def call(request, context):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    node.call = call
    _, port = await serve()
    pending = asyncio.ensure_future(connect(port).call("Node", "Call", request(), timeout_s=5))
    await entered.wait()
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    await ended.wait()


async def test_closing_the_channel_breaks_its_calls_without_cancelling_their_callers(serve, connect, node) -> None:
    node.call = hangs
    _, port = await serve()
    channel = connect(port)
    stream = channel.stream("Peer", "Frames")
    await stream.write(peer_pb2.Frame())
    assert await stream.read() == peer_pb2.Frame()
    call = asyncio.ensure_future(channel.call("Node", "Call", request(), timeout_s=5))
    read = asyncio.ensure_future(stream.read())
    replies = asyncio.ensure_future(anext(channel.replies("Node", "Watch", node_pb2.WatchRequest(after_index=1 << 60))))
    assert (await replies).index == 0
    await channel.close()
    for pending in (call, read):
        with pytest.raises(ChannelBroken):
            await pending
    with pytest.raises(ChannelBroken) as caught:
        await channel.call("Node", "Call", request(), timeout_s=5)
    assert not caught.value.sent
    await channel.close()


async def test_replies_come_in_order_and_end(serve, connect) -> None:
    _, port = await serve()
    channel = connect(port)
    got = [r.index async for r in channel.replies("Node", "Watch", node_pb2.WatchRequest(after_index=50))]
    assert got == list(range(50))
    maps = [m async for m in channel.replies("Node", "WatchMap", node_pb2.MapRequest(above_epoch=6))]
    assert maps == [meta_pb2.ShardMap(epoch=7)]


async def test_replies_no_longer_wanted_end_the_handler(serve, connect, node) -> None:
    ended = asyncio.Event()

    async def watch(request, context):
        try:
            yield node_pb2.WatchReply(index=1)
            await asyncio.Event().wait()
        finally:
            ended.set()

    node.watch = watch
    _, port = await serve()
    replies = connect(port).replies("Node", "Watch", node_pb2.WatchRequest())
    assert (await anext(replies)).index == 1
    await replies.aclose()
    await ended.wait()


async def test_a_stream_of_replies_says_why_it_broke(serve, connect, node) -> None:
    async def watch(request, context):
        yield node_pb2.WatchReply(index=1)
        raise TenfoldError(Code.COMPACTED, floor=9)

    node.watch = watch
    _, port = await serve()
    replies = connect(port).replies("Node", "Watch", node_pb2.WatchRequest())
    await anext(replies)
    with pytest.raises(TenfoldError) as caught:
        await anext(replies)
    assert caught.value.code is Code.COMPACTED and caught.value.details == {"floor": 9}


async def test_a_stream_goes_both_ways(serve, connect) -> None:
    _, port = await serve()
    stream = connect(port).stream("Peer", "Frames")
    for epoch in range(1, 20):
        frame = peer_pb2.Frame(heartbeat=peer_pb2.NodeHeartbeat(epoch=epoch))
        await stream.write(frame)
        assert await stream.read() == frame
    stream.cancel()
    with pytest.raises(ChannelBroken):
        await stream.read()
    with pytest.raises(ChannelBroken):
        await stream.write(peer_pb2.Frame())


async def test_a_stream_that_is_refused_says_why_to_reader_and_writer(serve, connect, peer) -> None:
    async def frames(requests, context):
        raise TenfoldError(Code.WRONG_CLUSTER)
        yield

    peer.frames = frames
    _, port = await serve()
    stream = connect(port).stream("Peer", "Frames")
    with pytest.raises(TenfoldError) as caught:
        await stream.read()
    assert caught.value.code is Code.WRONG_CLUSTER
    with pytest.raises((TenfoldError, ChannelBroken)):
        await stream.write(peer_pb2.Frame())


@pytest.mark.parametrize("refuses", [False, True])
async def test_an_early_end_stops_one_who_would_write_for_ever(serve, connect, peer, refuses) -> None:
    """A write may be in flight when the end comes; grpc then may know only that the stream is over."""

    async def snapshot(requests, context):
        await anext(requests)
        if refuses:
            raise TenfoldError(Code.OVERLOADED)
        yield peer_pb2.SnapshotReply(done=True)

    peer.snapshot = snapshot
    _, port = await serve()
    stream = connect(port).stream("Peer", "Snapshot")
    try:
        while True:
            await stream.write(peer_pb2.SnapshotChunk(pairs=b"x" * 100_000))
    except TenfoldError as error:
        assert refuses and error.code is Code.OVERLOADED
    except ChannelBroken as error:
        assert error.sent


async def test_a_handler_learns_that_the_stream_was_cancelled(serve, connect, peer) -> None:
    entered, gone = asyncio.Event(), asyncio.Event()

    async def snapshot(requests, context):
        entered.set()
        try:
            async for _ in requests:
                yield peer_pb2.SnapshotReply()
        finally:
            gone.set()

    peer.snapshot = snapshot
    _, port = await serve()
    stream = connect(port).stream("Peer", "Snapshot")
    await stream.write(peer_pb2.SnapshotChunk())
    await entered.wait()
    stream.cancel()
    await gone.wait()


async def test_a_request_over_the_bound_is_refused(serve, connect) -> None:
    small = replace(DEFAULT, message_bytes_max=64 * 1024)
    big = node_pb2.CallRequest(requests=[node_pb2.SubRequest(body=b"x" * 100_000)])
    _, port = await serve(limits=small)
    for limits in (small, DEFAULT):  # our own bound, and the server's
        with pytest.raises(TenfoldError) as caught:
            await connect(port, limits).call("Node", "Call", big, timeout_s=5)
        assert caught.value.code is Code.INVALID_ARGUMENT


async def test_every_channel_has_a_connection_of_its_own(serve, connect) -> None:
    _, port = await serve()
    seen = {(await connect(port).call("Node", "Status", node_pb2.StatusRequest(), timeout_s=5)).node for _ in range(2)}
    assert len(seen) == 2


async def test_a_server_that_is_back_is_reached_soon(serve, connect) -> None:
    server, port = await serve()
    channel = connect(port)
    await channel.call("Node", "Call", request(), timeout_s=5)
    await server.stop(0)
    down_until = time.monotonic() + 1.2  # long enough for grpc's default backoff to have grown past a second
    while time.monotonic() < down_until:
        with pytest.raises(ChannelBroken):
            await channel.call("Node", "Call", request(), timeout_s=5)
        await asyncio.sleep(0.02)
    await serve(port=port)
    back = time.monotonic()
    while True:
        try:
            await channel.call("Node", "Call", request(), timeout_s=5)
            break
        except ChannelBroken as error:
            assert not error.sent
            await asyncio.sleep(0.01)
    assert time.monotonic() - back < 0.6


def test_a_channel_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError):
        dial("127.0.0.1:1")


async def test_a_method_that_does_not_exist_is_named(connect) -> None:
    with pytest.raises(KeyError, match="Node/Fly"):
        await connect(1).call("Node", "Fly", request(), timeout_s=1)


@pytest.fixture
def silent_port():
    """Connections are taken by the kernel and nobody ever answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_a_stream_cancelled_while_it_connects_lets_its_writer_go(connect, silent_port) -> None:
    stream = connect(silent_port).stream("Peer", "Frames")
    writing = asyncio.ensure_future(stream.write(peer_pb2.Frame()))
    await asyncio.sleep(0)
    stream.cancel()
    with pytest.raises(ChannelBroken):
        await writing


async def test_a_channel_closed_while_it_connects_lets_its_callers_go(connect, silent_port) -> None:
    channel = connect(silent_port)
    pending = [
        asyncio.ensure_future(channel.call("Node", "Call", request(), timeout_s=60)),
        asyncio.ensure_future(channel.stream("Peer", "Frames").write(peer_pb2.Frame())),
    ]
    await asyncio.sleep(0)
    await channel.close()
    for each in pending:
        with pytest.raises(ChannelBroken):
            await each


async def test_a_deadline_holds_while_it_connects(connect, silent_port) -> None:
    with pytest.raises(TimeoutError):
        await connect(silent_port).call("Node", "Call", request(), timeout_s=0.05)


async def test_where_nobody_answers_nothing_was_sent(connect, silent_port) -> None:
    channel = connect(silent_port)
    for pending in (
        channel.call("Node", "Call", request(), timeout_s=5),
        channel.stream("Peer", "Frames").write(peer_pb2.Frame()),
    ):
        with pytest.raises(ChannelBroken) as caught:
            await pending
        assert not caught.value.sent
