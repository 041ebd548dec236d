"""Snapshots on the bulk channel: whole or not at all, from where the receiver stands, never far ahead of it, at a pace."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.ports import ChannelBroken
from cluster.raft.messages import Message, MessageKind
from cluster.wire.channel import dial
from node.storage.layout import data_prefix
from node.storage.memory import MemoryState
from node.storage.snapshot import SnapshotSource
from node.transport.codec import to_wire
from node.transport.snapshot_stream import BURST_S, WINDOW_CHUNKS, Pace
from proto.gen import peer_pb2

SMALL = replace(DEFAULT, snapshot_chunk_bytes=1024)
IMPATIENT = replace(SMALL, snapshot_idle_ms=400)


def header(shard: int = 3, number: int = 1) -> peer_pb2.SnapshotHeader:
    return peer_pb2.SnapshotHeader(message=to_wire(shard, Message(MessageKind.SNAPSHOT, 1, 2, 5, 100, 4)), id=number)


def frozen(pairs: int = 40, chunk_bytes: int = 1024) -> SnapshotSource:
    engine = MemoryState()
    engine.write({data_prefix(3, 0) + b"kv/%04d" % n: bytes([n % 251]) * 700 for n in range(pairs)})
    return SnapshotSource(engine.snapshot(), 3, chunk_bytes)


async def whole(source: SnapshotSource) -> bytes:
    pieces = []
    while (piece := await source.read()) is not None:
        pieces.append(piece)
    source.seek(0)
    return b"".join(pieces)


class Endless:
    """A state without an end, or one that cannot be read."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self.number = self.digest = self.settled = 0
        self._make = make

    async def read(self) -> bytes | None:
        self.number += 1
        return self._make(self.number - 1)

    def seek(self, number: int) -> None:
        self.number = number

    def settle(self, number: int) -> None:
        self.settled = number


async def two(station, limits=SMALL):
    a, b = await station("a", limits=limits), await station("b", limits=limits)
    a.knows(b)
    b.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    return a, b


async def test_a_snapshot_arrives_whole(station) -> None:
    a, b = await two(station)
    source = frozen()
    content = await whole(source)
    reply = await a.peers.send_snapshot("b", header(), source)
    assert reply.accepted and reply.next == 40
    assert b.recorder.snapshots == [("a", 3, content)]
    assert (await a.peers.send_snapshot("b", header(4), frozen(0))).accepted
    assert b.recorder.snapshots[1] == ("a", 4, b"")
    assert a.peers.counters()["snapshot_bytes_sent"] == len(content)
    assert a.peers.counters()["snapshots_resumed"] == 0


async def test_the_header_reaches_the_handler_and_a_refusal_the_sender(station) -> None:
    a, b = await two(station)
    seen = []

    async def on_snapshot(node, header, chunks):
        seen.append(header)
        yield peer_pb2.SnapshotReply(done=True, reason="busy")

    b.recorder.on_snapshot = on_snapshot
    source = frozen()
    reply = await a.peers.send_snapshot("b", header(), source)
    assert (reply.accepted, reply.reason, source.number) == (False, "busy", 0)
    assert seen[0].message == header().message
    assert seen[0].hello == a.peers.identity.hello()


async def test_a_broken_one_goes_on_where_the_receiver_stands(station) -> None:
    a, b = await two(station)
    taken: list[int] = []
    breaks = [5, 0, 18]
    record = b.recorder.on_snapshot

    async def on_snapshot(node, header, chunks):
        """Breaks off after some chunks. Which chunks come is told by the recorder, which wants each once."""
        left = breaks.pop(0) if breaks else 1000

        class Counted:
            async def next(self):
                nonlocal left
                if left == 0:
                    raise ChannelBroken("cut")
                left -= 1
                chunk = await chunks.next()
                taken.append(chunk.number)
                return chunk

        async for reply in record(node, header, Counted()):
            yield reply

    b.recorder.on_snapshot = on_snapshot
    source = frozen()
    content = await whole(source)
    for _ in range(3):
        with pytest.raises((ChannelBroken, TenfoldError)):  # grpc may know only that the stream is over
            await a.peers.send_snapshot("b", header(), source)
    assert (await a.peers.send_snapshot("b", header(), source)).accepted
    assert taken == list(range(41))
    assert b.recorder.snapshots == [("a", 3, content)]
    assert a.peers.counters()["snapshots_resumed"] == 3
    ahead = a.peers.counters()["snapshot_bytes_sent"] - len(content)
    assert 0 <= ahead <= 3 * WINDOW_CHUNKS * 1024, "only what was on its way is sent again"


async def test_a_receiver_that_lost_what_it_had_gets_it_from_the_start(station) -> None:
    a, b = await two(station)
    record, cut = b.recorder.on_snapshot, True

    async def on_snapshot(node, header, chunks):
        async for reply in record(node, header, chunks):
            if cut and reply.next == 30:
                raise ChannelBroken("cut")
            yield reply

    b.recorder.on_snapshot = on_snapshot
    source = frozen()
    with pytest.raises((ChannelBroken, TenfoldError)):
        await a.peers.send_snapshot("b", header(), source)
    assert source.settled > 0
    b.recorder.held.clear()
    cut = False
    assert (await a.peers.send_snapshot("b", header(), source)).accepted
    assert b.recorder.snapshots == [("a", 3, await whole(frozen()))]


async def test_a_receiver_that_asks_for_what_it_acknowledged_is_not_served(station) -> None:
    a, b = await two(station)
    source = frozen()
    source.seek(0)
    for _ in range(9):
        await source.read()
    source.settle(8)

    async def on_snapshot(node, header, chunks):
        yield peer_pb2.SnapshotReply(next=5)

    b.recorder.on_snapshot = on_snapshot
    with pytest.raises(TenfoldError, match="chunk 5"):
        await a.peers.send_snapshot("b", header(), source)


async def test_a_sender_is_never_more_than_its_window_ahead(station) -> None:
    a, b = await two(station, IMPATIENT)
    taken: list[int] = []

    async def take(node: str, header: Any, chunks: Any):
        """Acknowledges three windows, each when it is full, and then nothing more."""
        yield peer_pb2.SnapshotReply()
        for window in range(1, 6):
            while len(taken) < window * WINDOW_CHUNKS:
                taken.append((await chunks.next()).number)
            if window <= 3:
                yield peer_pb2.SnapshotReply(next=len(taken))

    b.recorder.on_snapshot = take
    endless = Endless(lambda n: bytes(1024))
    with pytest.raises((TimeoutError, TenfoldError), match=r"does not answer|sends nothing"):
        await a.peers.send_snapshot("b", header(), endless)
    assert taken == list(range(4 * WINDOW_CHUNKS))
    assert endless.settled == 3 * WINDOW_CHUNKS
    assert a.peers.counters()["snapshot_bytes_sent"] == 4 * WINDOW_CHUNKS * 1024


async def test_a_sender_that_says_nothing_more_is_given_up(station) -> None:
    a, b = await two(station, IMPATIENT)
    channel = dial(b.address)
    stream = channel.stream("Peer", "Snapshot")
    try:
        await stream.write(first(a))
        await stream.write(chunk(0, b"one"))
        with pytest.raises(TenfoldError) as given_up:
            while await stream.read() is not None:
                pass
        assert given_up.value.code is Code.UNAVAILABLE and "sends nothing" in given_up.value.message
    finally:
        await channel.close()
    assert b.recorder.held == {("a", 3, 1): [b"one"]}


async def test_frames_flow_while_a_snapshot_does(station) -> None:
    a, b = await two(station, DEFAULT)
    sending = asyncio.ensure_future(a.peers.send_snapshot("b", header(), Endless(lambda n: b"y" * 256 * 1024)))
    b.recorder.held[("a", 3, 1)] = kept = Forgetful()
    for term in range(20):
        a.peers.send("b", 1, [Message(MessageKind.HEARTBEAT, 1, 2, term)])
        a.peers.flush()
        await b.recorder.until(lambda term=term: len(b.recorder.messages) == term + 1)
    assert not sending.done()
    await b.recorder.until(lambda: kept.count > 20)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


class Forgetful(list[bytes]):
    """Counts without keeping."""

    count = 0

    def append(self, piece: bytes) -> None:
        self.count += 1

    def __len__(self) -> int:
        return self.count


async def test_pieces_that_fail_here_install_nothing_there(station) -> None:
    a, b = await two(station)

    def failing(number: int) -> bytes:
        if number > 2:
            raise OSError("cannot read")
        return b"x"

    for attempt in range(5):
        with pytest.raises(OSError, match="cannot read"):
            await a.peers.send_snapshot("b", header(number=attempt), Endless(failing))
    assert (await a.peers.send_snapshot("b", header(number=9), frozen(1))).accepted
    assert len(b.recorder.snapshots) == 1


# -- what a receiver makes of what comes -------------------------------------------------------------------------------


async def raw(a, b, chunks: list[peer_pb2.SnapshotChunk]) -> list[peer_pb2.SnapshotReply]:
    """All replies to a stream of these, up to its end."""
    channel = dial(b.address)
    stream = channel.stream("Peer", "Snapshot")
    replies = []
    try:
        for each in chunks:
            await stream.write(each)
        while (reply := await stream.read()) is not None:
            replies.append(reply)
        return replies
    finally:
        await channel.close()


def first(a) -> peer_pb2.SnapshotChunk:
    filled = header()
    filled.hello.CopyFrom(a.peers.identity.hello())
    return peer_pb2.SnapshotChunk(header=filled)


def chunk(number: int, pairs: bytes) -> peer_pb2.SnapshotChunk:
    return peer_pb2.SnapshotChunk(number=number, pairs=pairs, crc=zlib.crc32(pairs))


async def test_damage_is_told_and_what_came_before_it_counts(station) -> None:
    a, b = await two(station)
    damaged = chunk(1, b"hello")
    damaged.pairs = b"hellp"
    with pytest.raises(TenfoldError, match="chunk 1 came damaged") as told:
        await raw(a, b, [first(a), chunk(0, b"one"), damaged])
    assert told.value.code is Code.UNAVAILABLE
    assert b.recorder.held == {("a", 3, 1): [b"one"]} and b.recorder.snapshots == []


async def test_only_members_of_this_cluster_may_send(station) -> None:
    a, b = await two(station)
    foreign = first(a)
    foreign.header.hello.cluster_id = b"z" * 16
    nameless = first(a)
    nameless.header.hello.node = "q"
    for opening, code in [
        (foreign, Code.WRONG_CLUSTER),
        (nameless, Code.INVALID_ARGUMENT),
        (chunk(0, b"x"), Code.INVALID_ARGUMENT),
    ]:
        with pytest.raises(TenfoldError) as caught:
            await raw(a, b, [opening])
        assert caught.value.code is code
    assert b.recorder.snapshots == [] and b.recorder.held == {}


async def test_an_error_of_the_handler_reaches_the_sender(station) -> None:
    a, b = await two(station)

    async def on_snapshot(node, header, chunks):
        yield peer_pb2.SnapshotReply()
        while not (await chunks.next()).last:
            pass
        raise TenfoldError(Code.WRONG_SHARD)

    b.recorder.on_snapshot = on_snapshot
    with pytest.raises(TenfoldError) as caught:
        await a.peers.send_snapshot("b", header(), frozen(1))
    assert caught.value.code is Code.WRONG_SHARD


async def test_a_later_stream_for_the_same_shard_ends_the_earlier(station) -> None:
    a, b = await two(station)
    channel = dial(b.address)
    other_shard = first(a)
    other_shard.header.message.shard = 4
    try:
        earlier, elsewhere, later = (channel.stream("Peer", "Snapshot") for _ in range(3))
        for stream, opening in ((earlier, first(a)), (elsewhere, other_shard)):
            await stream.write(opening)
            assert (await stream.read()).next == 0
            await stream.write(chunk(0, b"one"))
            assert (await stream.read()).next == 1
        await later.write(first(a))
        with pytest.raises(TenfoldError) as ended:
            await earlier.read()
        assert ended.value.code is Code.UNAVAILABLE
        for stream in (elsewhere, later):
            await stream.write(chunk(1, b"two"))
            while (await stream.read()).next < 2:
                pass
    finally:
        await channel.close()


# -- the ends of nodes -------------------------------------------------------------------------------------------------


async def test_a_peer_that_goes_breaks_the_sending_and_the_next_one_follows_it_to_its_new_address(station) -> None:
    a, b = await two(station)
    sending = asyncio.ensure_future(a.peers.send_snapshot("b", header(), Endless(lambda n: b"x" * 1000)))
    await b.recorder.until(lambda: bool(b.recorder.held))
    await b.stop()
    with pytest.raises((ChannelBroken, TenfoldError)):
        await sending
    moved = await station("b", 2)
    moved.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"] and a.peers.address_of("b") == moved.address)
    assert (await a.peers.send_snapshot("b", header(), frozen(1))).accepted
    assert len(moved.recorder.snapshots) == 1


async def test_closing_breaks_a_sending(station) -> None:
    a, b = await two(station)
    sending = asyncio.ensure_future(a.peers.send_snapshot("b", header(), Endless(lambda n: b"x" * 1000)))
    await b.recorder.until(lambda: bool(b.recorder.held))
    await a.peers.close()
    with pytest.raises(ChannelBroken):
        await sending
    with pytest.raises(ChannelBroken) as caught:
        await a.peers.send_snapshot("b", header(), frozen(0))
    assert not caught.value.sent


async def test_a_node_that_is_no_member_is_not_reached(station) -> None:
    a, _ = await two(station)
    a.peers.forget("b")
    with pytest.raises(ChannelBroken) as caught:
        await a.peers.send_snapshot("b", header(), frozen(0))
    assert not caught.value.sent


# -- the pace ----------------------------------------------------------------------------------------------------------


class HandClock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 0


def test_all_who_book_share_one_bound() -> None:
    clock, size, rate = HandClock(), 1000, 10_000
    pace = Pace(rate, clock)
    gone: list[float] = []
    for _ in range(3):
        for _ in range(40):  # two senders, each waits for its turn; then nothing for a while
            waits = [pace.book(size), pace.book(size)]
            assert waits[0] <= waits[1]
            gone += [clock.now + wait for wait in waits]
            clock.now += max(waits)
        clock.now += 5.0
    gone.sort()
    for begin in range(len(gone)):
        for end in range(begin, len(gone)):
            span = gone[end] - gone[begin]
            assert (end - begin + 1) * size <= rate * (span + BURST_S) + size + 1e-6
    busy = gone[79] - gone[0]
    assert busy <= 80 * size / rate, "and the bound is used"


def test_a_late_sender_makes_up_for_a_little() -> None:
    clock = HandClock()
    pace = Pace(100_000, clock)
    assert pace.book(1000) == 0.0
    for _ in range(100):
        wait = pace.book(1000)
        clock.now += wait + 0.004  # the timer fires late
    assert clock.now - 100.0 <= 101 * 1000 / 100_000 + 0.004
