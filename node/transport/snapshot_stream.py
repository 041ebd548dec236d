"""One snapshot on the bulk channel: an attempt to send it, what arrives of it, and the pace of all that a node sends.

The header opens the stream, and the receiver answers where to begin. Numbered chunks follow, each with a CRC; the last has
the digest of all pairs. The receiver acknowledges every few chunks, and the sender is never more than a window ahead: no
end ever holds more than that in memory. Neither waits longer than `snapshot_idle_ms` for the other.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ChannelBroken, Clock, Stream
from proto.gen import peer_pb2

WINDOW_CHUNKS = 16
"""A sender is at most so many chunks of the usual size ahead of what was acknowledged."""

ACKNOWLEDGE_CHUNKS = 4
"""A receiver acknowledges at least as often; far below the window, so that nobody waits for the other in turn."""

BURST_S = 0.05
"""What a sender that was late may make up for."""


class Pieces(Protocol):
    """What is sent: a frozen state in numbered chunks. `digest` covers all before `number`, which is the next one."""

    @property
    def number(self) -> int: ...

    @property
    def digest(self) -> int: ...

    async def read(self) -> bytes | None: ...

    def seek(self, number: int) -> None: ...

    def settle(self, number: int) -> None: ...


class Pace:
    """A bound on bytes a second, shared by all who book with it: in any span of t seconds at most rate * (t + BURST_S)
    and one booking more."""

    def __init__(self, bytes_per_s: int, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = float("-inf")

    def book(self, size: int) -> float:
        """After how many seconds `size` bytes may go. Those who book are served in turn."""
        now = self._clock.monotonic()
        begin = max(self._free_at, now - BURST_S)
        self._free_at = begin + size / self._bytes_per_s
        return max(0.0, begin - now)


@dataclass(slots=True)
class Counts:
    """Over all that a node sends: bytes of pairs, and attempts that went on where an earlier one had broken off."""

    bytes: int = 0
    resumed: int = 0


class Attempt:
    """The sender's end of one stream."""

    def __init__(self, stream: Stream, pace: Pace, limits: Limits, counts: Counts) -> None:
        self._stream = stream
        self._pace = pace
        self._counts = counts
        self._idle_s = limits.snapshot_idle_ms / 1000
        self._window_bytes = WINDOW_CHUNKS * limits.snapshot_chunk_bytes
        self._ahead: deque[tuple[int, int]] = deque()  # number and size of each chunk that is not acknowledged
        self._ahead_bytes = 0

    async def run(self, header: peer_pb2.SnapshotHeader, pieces: Pieces) -> peer_pb2.SnapshotReply:
        """The receiver's last word. ChannelBroken, TimeoutError, TenfoldError: the peer may or may not have installed
        it. Also raises what `pieces` raises; then the peer installs nothing."""
        try:
            await self._write(peer_pb2.SnapshotChunk(header=header))
            reply = await self._read()
            if reply.done:
                return reply
            self._counts.resumed += reply.next > 0
            pieces.seek(reply.next)
            last = False
            while not last:
                chunk = await _next_chunk(pieces)
                last = chunk.last
                while self._ahead_bytes >= self._window_bytes:
                    reply = await self._acknowledged(pieces)
                    if reply.done:
                        return reply
                await self._wait(self._pace.book(len(chunk.pairs)))
                await self._write(chunk)
                self._ahead.append((chunk.number, len(chunk.pairs)))
                self._ahead_bytes += len(chunk.pairs)
                self._counts.bytes += len(chunk.pairs)
            while not reply.done:
                reply = await self._acknowledged(pieces)
            return reply
        finally:
            self._stream.cancel()

    async def _wait(self, seconds: float) -> None:
        """For the turn of the next chunk; the receiver hears meanwhile that there is still somebody."""
        while seconds > self._idle_s / 3:
            await asyncio.sleep(self._idle_s / 3)
            await self._write(peer_pb2.SnapshotChunk())
            seconds -= self._idle_s / 3
        await asyncio.sleep(seconds)

    async def _acknowledged(self, pieces: Pieces) -> peer_pb2.SnapshotReply:
        reply = await self._read()
        while self._ahead and self._ahead[0][0] < reply.next:
            self._ahead_bytes -= self._ahead.popleft()[1]
        pieces.settle(min(reply.next, pieces.number))
        return reply

    async def _write(self, chunk: peer_pb2.SnapshotChunk) -> None:
        await _within(self._idle_s, self._stream.write(chunk), "takes nothing")

    async def _read(self) -> peer_pb2.SnapshotReply:
        reply = await _within(self._idle_s, self._stream.read(), "does not answer")
        if reply is None:
            raise ChannelBroken("the receiver ended without its last word")
        assert isinstance(reply, peer_pb2.SnapshotReply)
        return reply


async def _next_chunk(pieces: Pieces) -> peer_pb2.SnapshotChunk:
    number = pieces.number
    pairs = await pieces.read()
    if pairs is None:
        return peer_pb2.SnapshotChunk(number=number, last=True, digest=pieces.digest)
    return peer_pb2.SnapshotChunk(number=number, pairs=pairs, crc=zlib.crc32(pairs))


async def _within(seconds: float, step: Awaitable[Any], what: str) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await step
    except TimeoutError:
        raise TimeoutError(f"the other end {what} for {seconds:g} s") from None


class Arriving:
    """The receiver's end of one stream: whole chunks with their numbers, up to the last. ChannelBroken when one is
    damaged, when the stream ends before the last one, or when nothing comes."""

    def __init__(self, requests: AsyncIterator[peer_pb2.SnapshotChunk], limits: Limits) -> None:
        self._requests = requests
        self._idle_s = limits.snapshot_idle_ms / 1000

    async def next(self) -> peer_pb2.SnapshotChunk:
        while True:
            chunk = await self._read()
            if chunk.pairs or chunk.last:
                return chunk

    async def _read(self) -> peer_pb2.SnapshotChunk:
        try:
            chunk = await _within(self._idle_s, anext(self._requests, None), "sends nothing")
        except TimeoutError as error:
            raise ChannelBroken(str(error)) from None
        if chunk is None:
            raise ChannelBroken("the snapshot was cut short")
        assert isinstance(chunk, peer_pb2.SnapshotChunk)
        if zlib.crc32(chunk.pairs) != chunk.crc:
            raise ChannelBroken(f"chunk {chunk.number} came damaged: its CRC does not match")
        return chunk

    async def header(self) -> peer_pb2.SnapshotHeader:
        """What opens the stream. TenfoldError when it is missing."""
        chunk = await self._read()
        if not chunk.HasField("header"):
            raise TenfoldError(Code.INVALID_ARGUMENT, "header: missing in the first chunk")
        return chunk.header
