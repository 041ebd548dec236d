"""The simulated network: hosts, links between them, connections over the links.

A connection is what TCP gives: bytes arrive in order or not at all. So a message is never lost, doubled or overtaken
inside a connection; the faults are delay, a jam (what is sent waits, and comes when the jam is over), a cut of one
direction (the same, until keepalive breaks the connection), a reset (what was on its way is gone), refusal. Between two
connections there is no order: one that lingers is broken for its client, who dials anew and says more, while what it had sent
before reaches the server late. Each link has a random stream of its own.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from math import log
from typing import Any

from chaos.sim.loop import Process, SimLoop
from chaos.sim.transcript import Transcript
from cluster.limits import Limits

CONNECT_S = 0.1
"""grpc's bound on one attempt to connect, as `cluster.wire` sets it."""
LINGER_S = 0.001


class Link:
    """One direction between two hosts. Seconds."""

    def __init__(self, seed: int, source: str, target: str, base_s: float, jitter_s: float) -> None:
        self.blocked = False
        self.blocks = 0
        self.slow = 1.0
        self._base_s = base_s
        self._jitter_s = jitter_s
        self._draw = random.Random(f"{seed}/link/{source}>{target}").random

    def delay_s(self) -> float:
        return self.slow * (self._base_s - self._jitter_s * log(1.0 - self._draw()))


class Lane:
    """One direction of a connection: what is on its way, first in, first out. `told`: the receiver knows of the break."""

    __slots__ = ("jammed", "last_s", "late_s", "link", "numbers", "queue", "receiver", "sender", "told")

    def __init__(self, network: Network, sender: Process, receiver: Process) -> None:
        self.link = network.link(sender.host, receiver.host)
        self.numbers = network.number(sender.host), network.number(receiver.host)
        self.sender = sender
        self.receiver = receiver
        self.queue: deque[tuple[Callable[[bytes], None], bytes]] = deque()
        self.jammed = 0
        self.last_s = 0.0
        self.late_s = 0.0  # nothing arrives before
        self.told = False


class Connection:
    """From a client's process to a server's. `calls` are told when it breaks."""

    def __init__(self, network: Network, client: Process, server: Process) -> None:
        self.client = client
        self.server = server
        self.open = True
        self.calls: dict[Any, None] = {}
        self._network = network
        self._loop = network.loop
        self._told = network.transcript.message
        self.forth = Lane(network, client, server)
        self.back = Lane(network, server, client)

    def transmit(self, lane: Lane, action: Callable[[bytes], None], data: bytes) -> None:
        """`action(data)` runs in the receiver after what was sent before. Nothing happens once the connection broke."""
        if not self.open or lane.sender.dead:
            return
        lane.queue.append((action, data))
        if lane.link.blocked:
            lane.jammed += 1
        else:
            self._travel(lane)

    def _travel(self, lane: Lane) -> None:
        loop = self._loop
        due_s = loop.now + lane.link.delay_s()
        if due_s > lane.last_s:
            lane.last_s = due_s
        loop.hand_at(lane.last_s, lane.receiver, self._arrive, lane)

    def _arrive(self, lane: Lane) -> None:
        """What a process sent before it died still comes, until the receiver is told of the break."""
        if lane.link.blocked:
            lane.jammed += 1
        elif lane.late_s > self._loop.now:
            self._loop.hand_at(lane.late_s, lane.receiver, self._arrive, lane)
        elif lane.queue and not lane.told and not lane.receiver.dead:
            action, data = lane.queue.popleft()
            source, target = lane.numbers
            self._told(source, target, data)
            action(data)

    def unjam(self, lane: Lane) -> None:
        jammed, lane.jammed = lane.jammed, 0
        for _ in range(jammed):
            self._travel(lane)

    def reset(self) -> None:
        """Broken now, for both ends."""
        self.open = False
        self.tell(self.client)
        self.tell(self.server)
        self._network.forget(self)

    def linger(self, for_s: float) -> None:
        """Broken now for the client; the server gets what was on its way, late, and then hears of the break."""
        loop = self._network.loop
        self.forth.late_s = loop.now + for_s
        self.tell(self.client)
        loop.at(self.forth.late_s + LINGER_S, self.tell, self.server)

    def vanish(self, dead: Process) -> None:
        """The process at one end is gone: the other end hears nothing more, until it is told."""
        self.open = False
        self._lane_to(dead).told = True

    def tell(self, process: Process) -> None:
        """Lets one end know that the connection is broken."""
        lane = self._lane_to(process)
        if lane.told:
            return
        lane.told = True
        self.open = False
        if not process.dead:
            self._network.loop.hand(process, self._broken, process is self.client)
        if self.forth.told and self.back.told:
            self._network.forget(self)

    def told(self, process: Process) -> bool:
        """Whether that end knows that the connection is broken."""
        return self._lane_to(process).told

    def _lane_to(self, process: Process) -> Lane:
        return self.back if process is self.client else self.forth

    def _broken(self, at_client: bool) -> None:
        for call in list(self.calls):
            call.broken(at_client)


class Network:
    """`listening`: address to what serves there, an object with `process` and `accept`."""

    def __init__(self, loop: SimLoop, transcript: Transcript, seed: int, limits: Limits) -> None:
        self.loop = loop
        self.transcript = transcript
        self.limits = limits
        self.listening: dict[str, Any] = {}
        self.watch: Callable[[str, str, Any], None] = lambda host, method, message: None
        """Called with every message that a process sends on a stream: (host, method, message)."""
        self._chance = random.Random(f"{seed}/network")
        self._base_s = 10 ** self._chance.uniform(-4.0, -2.3)
        self._jitter_s = self._base_s * self._chance.uniform(0.1, 3.0)
        self._seed = seed
        self._links: dict[tuple[str, str], Link] = {}
        self._numbers: dict[str, int] = {}
        self._connections: dict[Connection, None] = {}
        self._off: dict[str, None] = {}  # hosts without power

    def number(self, host: str) -> int:
        return self._numbers.setdefault(host, len(self._numbers))

    def link(self, source: str, target: str) -> Link:
        found = self._links.get((source, target))
        if found is None:
            found = Link(self._seed, source, target, self._base_s, self._jitter_s)
            self._links[source, target] = found
        return found

    def pause_s(self, between: tuple[float, float]) -> float:
        return self._chance.uniform(*between)

    @property
    def keepalive_s(self) -> float:
        """How long a connection lives over which nothing comes: silence before a ping, and the wait for its answer."""
        return 3 * self.limits.keepalive_ms / 1000

    # -- connections ---------------------------------------------------------------------------------------------------

    async def connect(self, client: Process, address: str, sleep: Callable[[float], Any]) -> Connection | None:
        """A connection to whatever listens there; None if it was refused or did not come about in time."""
        server = self.listening.get(address)
        if server is None:  # nobody there: a reset, if the way is free
            await sleep(CONNECT_S / 10)
            return None
        process: Process = server.process
        forth, back = self.link(client.host, process.host), self.link(process.host, client.host)
        if forth.blocked or back.blocked:
            await sleep(CONNECT_S)
            return None
        await sleep(min(CONNECT_S, forth.delay_s() + back.delay_s()))
        if forth.blocked or back.blocked or self.listening.get(address) is not server or client.dead:
            return None
        connection = Connection(self, client, process)
        self._connections[connection] = None
        return connection

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def between(self, one: str, other: str) -> list[Connection]:
        wanted = {one, other}
        return [each for each in self._connections if {each.client.host, each.server.host} == wanted]

    def gone(self, process: Process, *, silent: bool) -> None:
        """The process ended. Its kernel resets the connections, unless it went down too (`silent`): then the other ends
        notice by keepalive, or when the host is `back`."""
        if silent:
            self._off[process.host] = None
        for address in [each for each, server in list(self.listening.items()) if server.process is process]:
            del self.listening[address]
        for connection in [each for each in self._connections if process in (each.client, each.server)]:
            connection.vanish(process)
            other = connection.server if process is connection.client else connection.client
            link = self.link(process.host, other.host)
            wait_s = self.keepalive_s if silent or link.blocked else link.delay_s()
            self.loop.at(self.loop.now + wait_s, connection.tell, other)

    def back(self, host: str) -> None:
        """The host runs again, or can be reached again: it resets connections that it does not know."""
        self._off.pop(host, None)
        for connection in [each for each in self._connections if not each.open]:
            for process, other in (
                (connection.client, connection.server),
                (connection.server, connection.client),
            ):
                if process.host == host and process.dead and not self.link(host, other.host).blocked:
                    connection.tell(other)

    # -- faults --------------------------------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        """Nothing gets through in that direction; after the keepalive time the connections over it are broken."""
        link = self.link(source, target)
        if link.blocked:
            return
        link.blocked = True
        link.blocks += 1
        self.loop.at(self.loop.now + self.keepalive_s, self._starve, source, target, link.blocks)

    def _starve(self, source: str, target: str, blocks: int) -> None:
        link = self.link(source, target)
        if link.blocked and link.blocks == blocks:
            for connection in self.between(source, target):
                connection.reset()

    def unblock(self, source: str, target: str) -> None:
        """What waited comes now."""
        link = self.link(source, target)
        if link.blocked:
            link.blocked = False
            for connection in self.between(source, target):
                connection.unjam(connection.forth if connection.client.host == source else connection.back)
            if source not in self._off:
                self.back(source)

    def reset(self, one: str, other: str) -> None:
        for connection in self.between(one, other):
            connection.reset()

    def linger(self, one: str, other: str, for_s: float) -> None:
        for connection in self.between(one, other):
            if connection.open:
                connection.linger(for_s)

    def heal(self) -> None:
        for (source, target), link in list(self._links.items()):
            link.slow = 1.0
            self.unblock(source, target)
