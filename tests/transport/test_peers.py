"""Peer streams between real stations on loopback: who may talk, what arrives, how streams end and come back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
import structlog

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.raft.messages import Entry, Message, MessageKind
from cluster.wire.channel import GrpcChannel, dial
from node.transport.link import PROTOCOL
from proto.gen import peer_pb2

FAST = replace(DEFAULT, node_heartbeat_ms=60)


def message(term: int, size: int = 10) -> Message:
    return Message(MessageKind.APPEND, 1, 2, term, entries=[Entry(1, term, 0, b"x" * size)])


async def pair(station, **named: Any):
    """Two stations that reach each other."""
    a, b = await station("a", **named), await station("b", 7, **named)
    a.knows(b)
    b.knows(a)
    await a.recorder.until(lambda: bool(a.recorder.ups))
    await b.recorder.until(lambda: bool(b.recorder.ups))
    return a, b


async def test_both_come_up_and_messages_of_one_stage_share_a_frame(station) -> None:
    a, b = await pair(station)
    assert a.recorder.ups == [("b", 7, b.address)] and b.recorder.ups == [("a", 1, a.address)]
    assert a.peers.up() == ["b"] and b.peers.up() == ["a"]
    for shard in range(12):
        a.peers.send("b", shard, [message(shard * 10), message(shard * 10 + 1)])
    a.peers.flush()
    await b.recorder.until(lambda: len(b.recorder.messages) == 24)
    assert b.recorder.batches == [24]
    assert [(n, s, m.term) for n, s, m in b.recorder.messages] == [
        ("a", t // 2, t // 2 * 10 + t % 2) for t in range(24)
    ]
    assert b.recorder.messages[3][2].entries == [Entry(1, 11, 0, b"x" * 10)]


async def test_nothing_leaves_before_the_flush_but_a_heartbeat_takes_it_along(station) -> None:
    a, b = await pair(station)
    await b.recorder.until(lambda: len(b.recorder.heartbeats) == 1)
    a.peers.send("b", 1, [message(1)])
    await b.recorder.until(lambda: len(b.recorder.heartbeats) == 2)
    assert b.recorder.batches == [1]


async def test_frames_keep_their_bound_and_order(station) -> None:
    limits = replace(DEFAULT, frame_bytes_max=64 * 1024)
    a, b = await pair(station, limits=limits)
    for term in range(200):
        a.peers.send("b", 1, [message(term, 5000)])
    a.peers.flush()
    await b.recorder.until(lambda: len(b.recorder.messages) == 200)
    assert [m.term for _, _, m in b.recorder.messages] == list(range(200))
    assert max(b.recorder.batches) == 12  # 12 * (5000 + 160) <= 65536 - 64
    assert len(b.recorder.batches) == 17


class Gate(asyncio.Event):
    held = False  # something waits, or waited, before it


class GatedStream:
    """A real stream whose writes of messages wait for the gate; a heartbeat alone passes."""

    def __init__(self, stream: Any, gate: Gate) -> None:
        self._stream, self._gate = stream, gate
        self.read, self.cancel = stream.read, stream.cancel

    async def write(self, frame: Any) -> None:
        if frame.messages:
            self._gate.held = True
            await self._gate.wait()
        await self._stream.write(frame)


class GatedChannel(GrpcChannel):
    gate: Gate

    def stream(self, service: str, method: str) -> Any:
        return GatedStream(super().stream(service, method), self.gate)


async def test_what_comes_while_a_write_is_in_flight_shares_the_next_frame(station) -> None:
    gate = Gate()

    def gated(address: str) -> GrpcChannel:
        channel = GatedChannel(address)
        channel.gate = gate
        return channel

    a, b = await station("a", dial=gated), await station("b")
    b.knows(a)
    a.knows(b)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    for term in range(10):
        a.peers.send("b", 1, [message(term)])
        a.peers.flush()
        async with asyncio.timeout(5):
            while not gate.held:
                await asyncio.sleep(0)
    gate.set()
    await b.recorder.until(lambda: len(b.recorder.messages) == 10)
    assert b.recorder.batches == [1, 9]


async def test_a_full_queue_drops_counts_and_recovers(station) -> None:
    limits = replace(DEFAULT, frame_bytes_max=4096, peer_queue_bytes_max=16 * 1024)
    a, b = await pair(station, limits=limits)
    a.peers.send("b", 1, [message(term, 1000) for term in range(100)])
    counters = a.peers.counters()
    assert counters["peer_messages_sent"] == 14  # 14 * (1000 + 160) <= 16384
    assert counters["peer_messages_dropped"] == 86
    a.peers.flush()
    await b.recorder.until(lambda: len(b.recorder.messages) == 14)
    a.peers.send("b", 1, [message(200)])
    a.peers.flush()
    await b.recorder.until(lambda: len(b.recorder.messages) == 15)
    assert [m.term for _, _, m in b.recorder.messages] == [*range(14), 200]


async def test_what_is_sent_while_the_peer_is_down_is_dropped_at_once(station) -> None:
    a, b = await pair(station)
    await b.recorder.until(lambda: bool(b.recorder.heartbeats))
    a.peers.send("b", 1, [message(0)])  # never flushed: it dies with the stream
    await b.stop()
    await a.recorder.until(lambda: a.peers.up() == [])
    a.peers.send("b", 1, [message(1)] * 3)
    a.peers.send("nobody", 1, [message(1)])
    a.peers.flush()
    assert a.peers.counters()["peer_messages_dropped"] == 3
    again = await station("b", 8, port=int(b.address.rpartition(":")[2]))
    again.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    a.peers.send("b", 1, [message(9)])
    a.peers.flush()
    await again.recorder.until(lambda: bool(again.recorder.messages))
    assert [m.term for _, _, m in again.recorder.messages] == [9]


async def test_heartbeats_say_what_was_set_and_a_change_travels_with_the_next_frame(station) -> None:
    a, b = await pair(station)
    a.peers.set_heartbeat(3, 40)
    await b.recorder.until(lambda: ("a", 1, 3, 40) in b.recorder.heartbeats)
    b.recorder.heartbeats.clear()
    a.peers.set_heartbeat(2, 41, quarantined=1, stopping=True)
    a.peers.send("b", 1, [message(1)])
    a.peers.flush()
    await b.recorder.until(lambda: bool(b.recorder.messages))
    assert b.recorder.heartbeats == [("a", 1, 2, 41)]
    assert b.recorder.beats[-1].quarantined == 1 and b.recorder.beats[-1].stopping


async def test_heartbeats_come_every_interval_whether_idle_or_busy(station) -> None:
    a, b = await pair(station, limits=FAST)
    loop = asyncio.get_running_loop()
    for busy in (False, True):
        start, count = loop.time(), len(b.recorder.heartbeats)
        while len(b.recorder.heartbeats) < count + 10:
            if busy:
                a.peers.send("b", 1, [message(1)])
                a.peers.flush()
            await asyncio.sleep(0.005)
        took = loop.time() - start
        assert 0.25 < took < 1.5, f"ten heartbeats of 60 ms took {took:.3f} s (busy: {busy})"


async def test_heard_is_when_a_frame_last_came(station) -> None:
    a, b = await station("a", limits=FAST), await station("b", limits=FAST)
    assert a.peers.heard_s("b") == float("-inf")
    before = a.clock.monotonic()
    a.knows(b)
    b.knows(a)
    await a.recorder.until(lambda: bool(a.recorder.heartbeats))
    first = a.peers.heard_s("b")
    assert before < first <= a.clock.monotonic()
    count = len(a.recorder.heartbeats)
    await a.recorder.until(lambda: len(a.recorder.heartbeats) > count)
    assert a.peers.heard_s("b") > first


async def refusal(address: str, hello: peer_pb2.Hello | None) -> TenfoldError:
    """What the station at `address` says to a stranger's first frame."""
    channel = dial(address)
    stream = channel.stream("Peer", "Frames")
    try:
        await stream.write(peer_pb2.Frame(hello=hello))
        with pytest.raises(TenfoldError) as caught:
            await stream.read()
        return caught.value
    finally:
        await channel.close()


async def test_strangers_are_refused_each_with_one_line(station) -> None:
    a, b = await pair(station)
    good = b.peers.identity.hello()
    assert good.protocol == PROTOCOL
    cases = [
        ({"cluster_id": b"x" * 16}, Code.WRONG_CLUSTER, "another cluster"),
        ({"node": "zed"}, Code.INVALID_ARGUMENT, "'zed' is no member"),
        ({"node": "a"}, Code.INVALID_ARGUMENT, "'a' is no member"),  # the station's own name
        ({"incarnation": 6}, Code.INVALID_ARGUMENT, "6 of b is over"),
        ({"protocol": 2}, Code.INVALID_ARGUMENT, "protocol"),
    ]
    with structlog.testing.capture_logs() as logs:
        for changes, code, text in cases:
            hello = peer_pb2.Hello()
            hello.CopyFrom(good)
            for name, value in changes.items():
                setattr(hello, name, value)
            for _ in range(2):
                error = await refusal(a.address, hello)
                assert error.code is code and text in error.message
        assert (await refusal(a.address, None)).code is Code.INVALID_ARGUMENT
    refused = [line for line in logs if line["event"] == "peer refused"]
    assert len(refused) == len(cases) and all(line["log_level"] == "warning" for line in refused)
    assert a.peers.up() == ["b"] and a.recorder.downs == []


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"name": "b", "cluster_id": b"x" * 16}, "another cluster"),
        ({"name": "z"}, "another node: z"),
    ],
)
async def test_the_dialler_refuses_one_who_is_not_whom_it_dialled(station, made, why) -> None:
    a, other = await station("a"), await station(**made)
    other.peers.check = lambda hello: None  # an acceptor that asks nothing
    other.peers.set_address("a", a.address)
    with structlog.testing.capture_logs() as logs:
        a.peers.set_address("b", other.address)
        async with asyncio.timeout(5):
            while not any(line["peer"] == "b" and why in line.get("problem", "") for line in logs):
                await asyncio.sleep(0.01)
        await a.recorder.until_attempts(3)  # and no more lines
    assert len([line for line in logs if line["peer"] == "b" and why in line.get("problem", "")]) == 1
    assert a.peers.up() == [] and a.recorder.ups == []


async def test_a_hello_tells_the_new_address_of_a_node_that_moved(station) -> None:
    a, b = await pair(station)
    await b.stop()
    await a.recorder.until(lambda: a.peers.up() == [])
    moved = await station("b", 8)
    assert moved.address != b.address
    moved.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    assert a.recorder.ups[-1] == ("b", 8, moved.address)
    assert a.peers.address_of("b") == moved.address


async def test_a_peer_that_dials_in_is_dialled_on_a_fresh_channel(station) -> None:
    """The first channel never gets anywhere, as one deep in its backoff; only a hello makes the link take another."""
    b = await station("b")
    dialled: list[str] = []

    def first_astray(address: str) -> GrpcChannel:
        dialled.append(address)
        return GrpcChannel(address if len(dialled) > 1 else "127.0.0.1:1")

    a = await station("a", dial=first_astray)
    a.knows(b)
    await asyncio.sleep(0)
    b.knows(a)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    assert dialled == [b.address] * 2


async def test_a_set_address_is_dialled_at_once_if_the_link_is_down_and_kept_if_it_stands(station) -> None:
    a, b = await station("a"), await station("b")
    a.peers.set_address("b", "127.0.0.1:1")
    b.peers.set_address("a", "127.0.0.1:1")
    a.peers.set_address("b", b.address)
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    a.peers.set_address("b", "127.0.0.1:1")  # an old map: the stream that stands knows better
    a.peers.send("b", 1, [message(1)])
    a.peers.flush()
    await b.recorder.until(lambda: bool(b.recorder.messages))
    assert a.recorder.downs == []


async def test_a_newer_incarnation_replaces_the_old_stream(station) -> None:
    a = await station("a")
    old, new = await station("b", 5), await station("b", 6)
    a.knows(old)
    old.knows(a)
    await old.recorder.until(lambda: bool(old.recorder.ups))
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    with structlog.testing.capture_logs() as logs:
        new.knows(a)
        await a.recorder.until(lambda: bool(a.recorder.ups) and a.recorder.ups[-1] == ("b", 6, new.address))
        await old.recorder.until(lambda: old.peers.up() == [] and bool(old.recorder.downs))
        async with asyncio.timeout(5):  # the old one keeps trying and stays out
            while not any("is over" in line.get("problem", "") for line in logs):
                await asyncio.sleep(0.01)
    new.peers.send("a", 1, [message(6)])
    new.peers.flush()
    await a.recorder.until(lambda: bool(a.recorder.messages))
    assert old.peers.up() == [] and new.peers.up() == ["a"]
    assert a.recorder.ups[-1] == ("b", 6, new.address)


async def test_a_member_that_is_forgotten_is_neither_reached_nor_heard(station) -> None:
    """The stream that stands ends, a new one is refused, and so is one of an older life once it is a member again."""
    a, b = await pair(station, limits=FAST)
    await b.recorder.until(lambda: bool(b.recorder.heartbeats))
    a.peers.send("b", 1, [message(1)])
    a.peers.flush()
    await b.recorder.until(lambda: bool(b.recorder.messages))
    sent = a.peers.counters()["peer_messages_sent"]
    a.peers.forget("b")
    a.peers.forget("b")
    assert a.peers.up() == [] and not a.peers.known("b")
    a.peers.send("b", 1, [message(2)])
    assert a.peers.counters()["peer_messages_sent"] == sent == 1
    heard = len(a.recorder.messages)
    b.peers.send("a", 1, [message(3)])
    b.peers.flush()
    await b.recorder.until(lambda: b.peers.up() == [])
    await b.recorder.until_attempts(3)
    assert len(a.recorder.messages) == heard
    assert a.recorder.newer_maps == b.recorder.newer_maps == [], "both know the same map"
    assert (await refusal(a.address, b.peers.identity.hello())).code is Code.INVALID_ARGUMENT
    a.peers.link_refused("b", TenfoldError(Code.INVALID_ARGUMENT, epoch=9))  # its link has not ended yet
    assert a.recorder.newer_maps == []
    a.knows(b)
    older = b.peers.identity.hello()
    older.incarnation -= 1
    assert "is over" in (await refusal(a.address, older)).message
    await b.recorder.until(lambda: b.peers.up() == ["a"])
    assert a.peers.up() == ["b"]


@pytest.mark.parametrize("newer", ["the stranger", "the other"])
async def test_a_stranger_and_a_member_tell_each_other_of_a_newer_map(station, newer: str) -> None:
    """One joined while the other was away, or one was removed while it was away: who refuses and who is refused learn of it."""
    a, b = await station("a", limits=FAST), await station("b", limits=FAST)
    a.peers.set_heartbeat(0, 3)
    b.peers.set_heartbeat(0, 4 if newer == "the stranger" else 2)
    b.knows(a)
    told, other = (a, b) if newer == "the stranger" else (b, a)
    await told.recorder.until(lambda: bool(told.recorder.newer_maps))
    assert set(told.recorder.newer_maps) == {other.address}
    await b.recorder.until_attempts(3)
    assert other.recorder.newer_maps == [] and a.peers.up() == b.peers.up() == []


async def test_closing_waits_for_links_that_were_forgotten(station) -> None:
    a, _ = await pair(station)
    a.peers.forget("b")
    await a.peers.close()
    await asyncio.sleep(0)
    assert all(task.done() and task.exception() is None for task in a.spawn.tasks)


async def test_both_directions_tell_of_a_peer_that_goes(station) -> None:
    a, b = await pair(station)
    await a.recorder.until(lambda: bool(a.recorder.heartbeats))
    await b.stop()
    await a.recorder.until(lambda: a.recorder.downs == ["b", "b"])
    assert a.peers.up() == []


async def test_closing_is_clean_in_every_state(station, caplog) -> None:
    """Up, connecting to nobody, connecting to one who never answers, unknown: no callback, no task, no complaint."""
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        a, b = await pair(station)
        listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        a.peers.set_address("c", "127.0.0.1:1")
        a.peers.set_address("d", f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        a.peers.send("b", 1, [message(1)] * 10)
        started = asyncio.get_running_loop().time()
        await a.peers.close()
        assert asyncio.get_running_loop().time() - started < 0.5
        assert all(task.done() and task.exception() is None for task in a.spawn.tasks)
        assert len(a.spawn.tasks) == 1 + 2 * 3
        assert a.recorder.downs == []
        a.peers.set_address("e", "127.0.0.1:1")
        a.peers.send("b", 1, [message(1)])
        a.peers.flush()
        await a.peers.close()
        assert len(a.spawn.tasks) == 7
        await b.recorder.until(lambda: b.recorder.downs.count("a") >= 1)
        listener.close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
