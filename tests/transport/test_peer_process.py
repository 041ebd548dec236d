"""A peer in a process of its own, killed, frozen and brought back: how soon each side knows."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.limits import DEFAULT
from cluster.raft.messages import Message, MessageKind

PROGRAM = Path(__file__).with_name("peer_program.py")


class Process:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port = process, port

    def signal(self, number: signal.Signals) -> float:
        """When it was sent."""
        at = asyncio.get_running_loop().time()
        self.process.send_signal(number)
        return at


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Process]]]:
    made: list[asyncio.subprocess.Process] = []

    async def make(other: str, incarnation: int = 1, port: int = 0) -> Process:
        arguments = ["b", str(incarnation), str(port), "a", other]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), *arguments, stdout=asyncio.subprocess.PIPE
        )
        made.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(10):
            return Process(process, int(await process.stdout.readline()))

    yield make
    for process in made:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def both_ways(a, port: int) -> None:
    """A message goes to the program and comes back by the stream it dialled."""
    a.peers.set_address("b", f"127.0.0.1:{port}")
    await a.recorder.until(lambda: a.peers.up() == ["b"] and bool(a.recorder.heartbeats))
    count = len(a.recorder.messages)
    a.peers.send("b", 1, [Message(MessageKind.HEARTBEAT, 1, 2, 3)])
    a.peers.flush()
    await a.recorder.until(lambda: len(a.recorder.messages) > count)


async def test_a_kill_is_noticed_both_ways_and_a_return_is_used_at_once(station, start) -> None:
    loop = asyncio.get_running_loop()
    a = await station("a")
    peer = await start(a.address)
    await both_ways(a, peer.port)
    killed = peer.signal(signal.SIGKILL)
    await a.recorder.until(lambda: len(a.recorder.downs) == 2)
    assert loop.time() - killed < 0.3, "the dialled and the accepted stream both break with the process"
    await peer.process.wait()
    await a.recorder.until_attempts(4)
    a.recorder.heartbeats.clear()
    again = await start(a.address, 2, peer.port)
    back = loop.time()
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    await a.recorder.until(lambda: bool(a.recorder.heartbeats))
    assert loop.time() - back < 0.5
    assert a.recorder.ups[-1][:2] == ("b", 2)
    await both_ways(a, again.port)


async def test_a_return_is_noticed_by_our_own_attempts_too(station, start) -> None:
    """The peer does not know where we are: only our dialling finds it."""
    loop = asyncio.get_running_loop()
    a = await station("a")
    peer = await start("127.0.0.1:1")
    a.peers.set_address("b", f"127.0.0.1:{peer.port}")
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    peer.signal(signal.SIGKILL)
    await a.recorder.until(lambda: a.recorder.downs == ["b"])
    await peer.process.wait()
    await a.recorder.until_attempts(8)  # grpc's default backoff would have passed a second by now
    await start("127.0.0.1:1", 2, peer.port)
    back = loop.time()
    await a.recorder.until(lambda: a.peers.up() == ["b"])
    assert loop.time() - back < 0.8


async def test_a_frozen_peer_is_dropped_and_found_again(station, start) -> None:
    loop = asyncio.get_running_loop()
    a = await station("a", limits=replace(DEFAULT, keepalive_ms=200))
    peer = await start(a.address)
    await both_ways(a, peer.port)
    frozen = peer.signal(signal.SIGSTOP)
    await a.recorder.until(lambda: len(a.recorder.downs) == 2)
    assert 0.2 < loop.time() - frozen < 2
    a.recorder.heartbeats.clear()
    thawed = peer.signal(signal.SIGCONT)
    await a.recorder.until(lambda: a.peers.up() == ["b"] and bool(a.recorder.heartbeats))
    assert loop.time() - thawed < 1
