"""The dialled direction to one peer: connect, greet, write frames, notice the break, try again.

Two loops per link. One owns the stream's life and waits in its read (the peer says nothing after its hello, so a read
that returns means the stream is over); the other is the stream's only writer. While a write is in flight, what comes
meanwhile joins the next frame. While the stream is down everything is dropped at once: Raft retries with newer state.
No task is cancelled to end a link, only its stream and its waits, so nothing dies half-way through a write.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import Channel, ChannelBroken, Clock, Dial, Spawn, Stream
from cluster.raft.messages import Message
from node.transport.outbox import Outbox
from proto.gen import peer_pb2

PROTOCOL = 1
RECONNECT_WAITS_S = (0.05, 0.1, 0.2)
"""Between attempts; the last repeats. Longer waits make elections storm when a node is back."""


@dataclass(slots=True)
class Identity:
    """How this node presents itself. `address` may be set once the port is known, before the first peer is; `epoch`, of the
    map it knows, changes as it goes."""

    cluster_id: bytes
    node: str
    incarnation: int
    address: str
    epoch: int = 0

    def hello(self) -> peer_pb2.Hello:
        return peer_pb2.Hello(
            cluster_id=self.cluster_id,
            node=self.node,
            incarnation=self.incarnation,
            address=self.address,
            protocol=PROTOCOL,
            epoch=self.epoch,
        )


class LinkEvents(Protocol):
    """What a link tells its owner."""

    def link_heard(self, node: str, incarnation: int) -> bool:
        """The peer answered; False if that incarnation is older than one already seen."""

    def link_up(self, node: str, incarnation: int, address: str) -> None: ...

    def link_down(self, node: str) -> None: ...

    def link_refused(self, node: str, refusal: TenfoldError) -> None:
        """The peer said that it will not talk to us, and why."""

    def heartbeat(self) -> peer_pb2.NodeHeartbeat: ...


class Refused(Exception):
    """The other end is not who it should be."""


class Link:
    """One peer, dialled. `send` and `flush` never wait."""

    def __init__(
        self,
        peer: str,
        address: str,
        identity: Identity,
        events: LinkEvents,
        *,
        dial: Dial,
        spawn: Spawn,
        clock: Clock,
        limits: Limits,
        log: Any,
    ) -> None:
        self.peer = peer
        self.address = address
        self.messages_dropped = 0
        self.messages_sent = 0
        self.frames_sent = 0
        self._identity = identity
        self._events = events
        self._dial = dial
        self._clock = clock
        self._log = log.bind(peer=peer)
        self._hello_s = limits.peer_hello_ms / 1000
        self._heartbeat_s = limits.node_heartbeat_ms / 1000
        self._outbox = Outbox(limits)
        self._stream: Stream | None = None
        self._greeting: Stream | None = None
        self._heartbeat_sent_s = float("-inf")
        self._wake = asyncio.Event()
        self._kicked = asyncio.Event()
        self._fresh = False
        self._closing = False
        self._running = 2
        self._ended = asyncio.Event()
        self._last_problem = ""
        spawn(self._connect_loop(), f"link to {peer}")
        spawn(self._write_loop(), f"writer to {peer}")

    @property
    def up(self) -> bool:
        return self._stream is not None

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def send(self, shard: int, messages: list[Message]) -> None:
        if self._stream is None:
            self.messages_dropped += len(messages)
            return
        for message in messages:
            if self._outbox.add(shard, message):
                self.messages_sent += 1
            else:
                self.messages_dropped += 1

    def flush(self) -> None:
        if self._outbox:
            self._wake.set()

    def beat(self, *, changed: bool) -> None:
        """Called once per heartbeat interval, and when what the heartbeat says has changed."""
        if changed:
            self._heartbeat_sent_s = float("-inf")
        elif self._stream is not None and self._since_heartbeat_s() >= 0.75 * self._heartbeat_s:
            self._wake.set()

    def kick(self) -> None:
        """The peer was just heard: try to reach it now, on a fresh channel that is in no backoff."""
        if self._stream is None:
            self._fresh = True
            self._kicked.set()

    def move(self, address: str, *, at_once: bool) -> None:
        """Another address for the next attempt; `at_once` gives up a standing stream to the old one."""
        if address == self.address:
            return
        self.address = address
        if at_once or self._stream is None:
            self._break()
            self._kicked.set()

    async def close(self) -> None:
        """Ends both loops and waits for them."""
        self._closing = True
        self._break()
        self._kicked.set()
        self._wake.set()
        await self._ended.wait()

    def _break(self) -> None:
        for stream in (self._stream, self._greeting):
            if stream is not None:
                stream.cancel()

    async def _connect_loop(self) -> None:
        channel: Channel | None = None
        dialled = ""
        attempt = 0
        while not self._closing:
            self._kicked.clear()
            if channel is None or dialled != self.address or self._fresh:
                if channel is not None:
                    await channel.close()
                channel, dialled = self._dial(self.address), self.address
                self._fresh = False
            if await self._attempt(channel, dialled):
                attempt = 0
            await self._pause(RECONNECT_WAITS_S[min(attempt, len(RECONNECT_WAITS_S) - 1)])
            attempt += 1
        if channel is not None:
            await channel.close()
        self._loop_ended()

    async def _attempt(self, channel: Channel, address: str) -> bool:
        """One stream's life; True if it ever stood."""
        stream = self._greeting = channel.stream("Peer", "Frames")
        stood = False
        try:
            async with asyncio.timeout(self._hello_s):
                incarnation = await self._greet(stream)
            if not self._closing and address == self.address:
                stood = True
                self._stand(stream, incarnation, address)
                while await stream.read() is not None:
                    pass
            self._problem(address, "stream ended" if stood else "")
        except (ChannelBroken, TimeoutError, TenfoldError, Refused) as error:
            self._problem(address, f"{type(error).__name__}: {error}" if address == self.address else "it moved")
            if isinstance(error, TenfoldError) and error.code == Code.INVALID_ARGUMENT and not self._closing:
                self._events.link_refused(self.peer, error)
        finally:
            self._greeting = None
            stream.cancel()
            if stood:
                self._fall()
        return stood

    async def _greet(self, stream: Stream) -> int:
        """Hellos both ways; the peer's incarnation."""
        await stream.write(peer_pb2.Frame(hello=self._identity.hello()))
        frame = await stream.read()
        if frame is None or not frame.HasField("hello"):
            raise Refused("no hello in return")
        hello: peer_pb2.Hello = frame.hello
        if hello.cluster_id != self._identity.cluster_id:
            raise Refused(f"another cluster: {hello.cluster_id.hex()}")
        if hello.node != self.peer:
            raise Refused(f"another node: {hello.node}")
        if not self._events.link_heard(self.peer, hello.incarnation):
            raise Refused(f"incarnation {hello.incarnation} is older than one already seen")
        return hello.incarnation

    def _stand(self, stream: Stream, incarnation: int, address: str) -> None:
        assert not self._outbox, "nothing waits for a stream that does not stand"
        self._stream = stream
        self._fresh = False
        self._heartbeat_sent_s = float("-inf")
        self._last_problem = ""
        self._log.info("peer up", address=address, incarnation=incarnation)
        self._events.link_up(self.peer, incarnation, address)
        self._wake.set()  # the first heartbeat goes at once

    def _fall(self) -> None:
        self._stream = None
        self._outbox.clear()
        if not self._closing:
            self._events.link_down(self.peer)

    def _problem(self, address: str, text: str) -> None:
        """One line per new problem, not one per attempt."""
        if text and text != self._last_problem and not self._closing:
            self._last_problem = text
            self._log.warning("peer unreachable", address=address, problem=text)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._kicked.wait()
        except TimeoutError:
            pass

    async def _write_loop(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            stream = self._stream
            if stream is None:
                continue
            try:
                await self._write_waiting(stream)
            except (ChannelBroken, TenfoldError):
                stream.cancel()  # the reader says why
        self._loop_ended()

    async def _write_waiting(self, stream: Stream) -> None:
        while self._stream is stream:
            due = self._since_heartbeat_s() >= 0.5 * self._heartbeat_s
            if self._outbox:
                frame = self._outbox.take()
            elif due:
                frame = peer_pb2.Frame()
            else:
                return
            if due:
                frame.heartbeat.CopyFrom(self._events.heartbeat())
                self._heartbeat_sent_s = self._clock.monotonic()
            self.frames_sent += 1
            await stream.write(frame)

    def _since_heartbeat_s(self) -> float:
        return self._clock.monotonic() - self._heartbeat_sent_s

    def _loop_ended(self) -> None:
        self._running -= 1
        if self._running == 0:
            self._ended.set()
