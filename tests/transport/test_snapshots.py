"""Snapshots on the bulk channel arrive whole or not at all, and beside the frames."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

import pytest

from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from cluster.raft.messages import Message, MessageKind
from cluster.wire.channel import dial
from node.transport.codec import to_wire
from proto.gen import peer_pb2


def header(shard: int = 3) -> peer_pb2.SnapshotHeader:
    return peer_pb2.SnapshotHeader(message=to_wire(shard, Message(MessageKind.SNAPSHOT, 1, 2, 5, 100, 4)))


async def two(station):
    a, b = await station("a"), await station("b")
    a.knows(b)
    b.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    return a, b


async def test_a_snapshot_arrives_whole(station) -> None:
    a, b = await two(station)
    pieces = [bytes([i]) * (1000 * i) for i in range(1, 40)]
    reply = await a.peers.send_snapshot("b", header(), iter(pieces))
    assert reply.accepted
    assert b.recorder.snapshots == [("a", 3, b"".join(pieces))]
    assert (await a.peers.send_snapshot("b", header(4), iter([]))).accepted
    assert b.recorder.snapshots[1] == ("a", 4, b"")


async def test_the_header_reaches_the_handler(station) -> None:
    a, b = await two(station)
    seen = []

    async def on_snapshot(node, header, chunks):
        seen.append(header)
        assert [chunk async for chunk in chunks] == [b"x", b"y"]
        return peer_pb2.SnapshotReply(accepted=False, reason="busy")

    b.recorder.on_snapshot = on_snapshot
    reply = await a.peers.send_snapshot("b", header(), iter([b"x", b"y"]))
    assert (reply.accepted, reply.reason) == (False, "busy")
    assert seen[0].message == header().message
    assert seen[0].hello == a.peers.identity.hello()


async def test_frames_flow_while_a_snapshot_does(station) -> None:
    a, b = await two(station)
    stop = asyncio.Event()

    def endless() -> Iterator[bytes]:
        while not stop.is_set():
            yield b"y" * 256 * 1024

    sending = asyncio.ensure_future(a.peers.send_snapshot("b", header(), endless()))
    for term in range(20):
        a.peers.send("b", 1, [Message(MessageKind.HEARTBEAT, 1, 2, term)])
        a.peers.flush()
        await b.recorder.until(lambda term=term: len(b.recorder.messages) == term + 1)
    assert not sending.done()
    stop.set()
    assert (await sending).accepted


async def test_chunks_that_fail_here_install_nothing_there(station) -> None:
    a, b = await two(station)

    def failing() -> Iterator[bytes]:
        yield b"x"
        raise OSError("cannot read")

    for _ in range(5):
        with pytest.raises(OSError, match="cannot read"):
            await a.peers.send_snapshot("b", header(), failing())
    assert (await a.peers.send_snapshot("b", header(), iter([b"y"]))).accepted
    assert b.recorder.snapshots == [("a", 3, b"y")]


async def raw(a, b, chunks: list[peer_pb2.SnapshotChunk]) -> peer_pb2.SnapshotReply:
    async def each() -> AsyncIterator[peer_pb2.SnapshotChunk]:
        for chunk in chunks:
            yield chunk

    channel = dial(b.address)
    try:
        return await channel.send_all("Peer", "Snapshot", each(), timeout_s=5)
    finally:
        await channel.close()


def first(a) -> peer_pb2.SnapshotChunk:
    filled = header()
    filled.hello.CopyFrom(a.peers.identity.hello())
    return peer_pb2.SnapshotChunk(header=filled)


def chunk(pairs: bytes, last: bool = False) -> peer_pb2.SnapshotChunk:
    return peer_pb2.SnapshotChunk(pairs=pairs, crc=zlib.crc32(pairs), last=last)


async def test_damage_and_a_missing_end_are_told_and_install_nothing(station) -> None:
    a, b = await two(station)
    damaged = chunk(b"hello")
    damaged.pairs = b"hellp"
    for chunks, reason in [
        ([chunk(b"one"), damaged, chunk(b"", last=True)], "CRC"),
        ([chunk(b"one"), chunk(b"two")], "cut short"),
        ([], "cut short"),
    ]:
        reply = await raw(a, b, [first(a), *chunks])
        assert not reply.accepted and reason in reply.reason
    assert b.recorder.snapshots == []
    assert (await raw(a, b, [first(a), chunk(b"one", last=True)])).accepted


async def test_only_members_of_this_cluster_may_send(station) -> None:
    a, b = await two(station)
    foreign = first(a)
    foreign.header.hello.cluster_id = b"z" * 16
    nameless = first(a)
    nameless.header.hello.node = "q"
    for opening, code in [
        (foreign, Code.WRONG_CLUSTER),
        (nameless, Code.INVALID_ARGUMENT),
        (chunk(b"x", last=True), Code.INVALID_ARGUMENT),
    ]:
        with pytest.raises(TenfoldError) as caught:
            await raw(a, b, [opening])
        assert caught.value.code is code
    assert b.recorder.snapshots == []


async def test_an_error_of_the_handler_reaches_the_sender(station) -> None:
    a, b = await two(station)

    async def on_snapshot(node, header, chunks):
        async for _ in chunks:
            pass
        raise TenfoldError(Code.WRONG_SHARD)

    b.recorder.on_snapshot = on_snapshot
    with pytest.raises(TenfoldError) as caught:
        await a.peers.send_snapshot("b", header(), iter([b"x"]))
    assert caught.value.code is Code.WRONG_SHARD


async def test_a_peer_that_goes_breaks_the_sending_and_the_next_one_follows_it_to_its_new_address(station) -> None:
    a, b = await two(station)
    entered = asyncio.Event()

    async def on_snapshot(node, header, chunks):
        async for _ in chunks:
            entered.set()
        raise AssertionError("never whole")

    b.recorder.on_snapshot = on_snapshot
    endless = (b"x" * 1000 for _ in iter(int, 1))
    sending = asyncio.ensure_future(a.peers.send_snapshot("b", header(), endless))
    await entered.wait()
    await b.stop()
    with pytest.raises((ChannelBroken, TenfoldError)):
        await sending
    moved = await station("b", 2)
    moved.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"] and a.peers.address_of("b") == moved.address)
    assert (await a.peers.send_snapshot("b", header(), iter([b"z"]))).accepted
    assert moved.recorder.snapshots == [("a", 3, b"z")]


async def test_closing_breaks_a_sending(station) -> None:
    a, b = await two(station)
    entered = asyncio.Event()

    async def on_snapshot(node, header, chunks):
        async for _ in chunks:
            entered.set()

    b.recorder.on_snapshot = on_snapshot
    endless = (b"x" * 1000 for _ in iter(int, 1))
    sending = asyncio.ensure_future(a.peers.send_snapshot("b", header(), endless))
    await entered.wait()
    await a.peers.close()
    with pytest.raises(ChannelBroken):
        await sending
    with pytest.raises(ChannelBroken) as caught:
        await a.peers.send_snapshot("b", header(), iter([]))
    assert not caught.value.sent
