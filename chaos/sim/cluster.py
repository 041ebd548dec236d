"""A cluster of production nodes and clients in virtual time: hosts, their incarnations, and how they end.

`Node` and `Client` are built as their process entries build them; only the ports differ. A node that fails on its own
(a failed sync, a bug) ends like a process that exits; whether that was allowed is for the run to judge.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Coroutine
from typing import Any, NamedTuple

from chaos.sim.channel import SimChannel
from chaos.sim.clock import BusyClock, HostClock
from chaos.sim.disk import Medium
from chaos.sim.knobs import draw_limits
from chaos.sim.loop import Process, SimLoop
from chaos.sim.network import Network
from chaos.sim.oracles import Oracles
from chaos.sim.server import SimServer
from chaos.sim.transcript import Transcript
from client.client import Client
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT, Limits
from cluster.ports import DiskFull, Handlers, StorageFailed
from cluster.types import Role
from node.app import Node, Ports
from node.cluster_map import PATH as MAP_PATH
from node.config import MemberConfig, NodeConfig
from node.replica import Replica
from node.storage.identity import Identity, Sealed
from proto.gen import meta_pb2
from proto.gen.meta_pb2 import Replica as Stage

CLUSTER_ID = bytes(range(16))
FIRST_PORT = 7400
START_AGAIN_S = 0.3
"""After a node ended by itself, its supervisor starts it again."""
REPLACE_S = 2.0
"""And so long after it has refused to start on a damaged disk, somebody gives it an empty one."""

LOOK_S = (0.0, 0.0, 0.00002, 0.0004)
"""What one look at the clock costs a node; drawn for each host."""


class Side(NamedTuple):
    """A list of voters: how many they are, and the nodes where the replicas of these ids are still. A node that has another replica by
    now counts for nothing in a list that names its old one."""

    size: int
    nodes: frozenset[str]

    def carried_by(self, good: set[str]) -> bool:
        return 2 * len(self.nodes & good) > self.size


class Host:
    """A machine: its clock and disk outlive the processes on it."""

    def __init__(self, loop: SimLoop, seed: int, name: str, address: str) -> None:
        chance = random.Random(f"{seed}/host/{name}")
        self.name = name
        self.address = address
        self.clock = HostClock(lambda: loop.now, offset_s=chance.uniform(1.0, 100_000.0))
        self.medium = Medium(seed, name)
        self.chance = chance
        self.look_s = chance.choice(LOOK_S)
        self.process: Process | None = None
        self.node: Node | None = None
        self.lives = 0
        self.moves = 0
        self.held: dict[int, int] = {}
        """The replica id of each shard that its last life had."""
        self.excused = False
        """Its disk was told to fail: a node that stops for that keeps the law."""
        self.lived = False
        """It has served: its launcher knows, whatever its disk says."""
        self.damaged_life: int | None = None
        """In which life something on its disk was destroyed; None while it counts as whole."""


class SimCluster:
    def __init__(
        self,
        loop: SimLoop,
        transcript: Transcript,
        seed: int,
        limits: Limits,
        *,
        nodes: int,
        shards: int,
        replicas: int,
    ) -> None:
        self.loop = loop
        self.transcript = transcript
        self.limits = limits
        self.shards = shards
        self.replication_factor = replicas
        self.network = Network(loop, transcript, seed, limits)
        self.oracles = Oracles()
        self.network.watch = self.oracles.sent
        self.hosts = {
            f"n{at + 1}": Host(loop, seed, f"n{at + 1}", f"10.0.0.{at + 1}:{FIRST_PORT}") for at in range(nodes)
        }
        self.members = [MemberConfig(name, host.address) for name, host in self.hosts.items()]
        self.clients: list[Client] = []
        self.client_processes: list[Process] = []
        self._seed = seed
        self.missing: dict[str, None] = {}
        """Members whose machine was taken away without asking: their copies are lost."""
        self._hosts_made = nodes
        self._retired: dict[str, str] = {}
        self._map: meta_pb2.ShardMap | None = None

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add_host(self) -> str:
        """A new machine, whose node is to join by the addresses of those there are."""
        self._hosts_made += 1
        name = f"n{self._hosts_made}"
        self.hosts[name] = Host(self.loop, self._seed, name, f"10.0.0.{self._hosts_made}:{FIRST_PORT}")
        return name

    def retire(self, name: str) -> None:
        """The machine is taken away."""
        self.end(name, "power")
        self.oracles.damaged_hosts.pop(name, None)
        self._retired[name] = self.hosts.pop(name).address

    def address_of(self, name: str) -> str:
        """Where the node listens, or did when its machine was taken away."""
        return self.hosts[name].address if name in self.hosts else self._retired[name]

    def boot(self, name: str) -> None:
        """Starts the node's process; it serves some time later, or ends."""
        host = self.hosts[name]
        assert host.process is None, f"{name} runs"
        process = host.process = Process(name, host.clock)
        host.lives += 1
        self.network.back(name)
        self.transcript.note(name, f"boot {host.lives} at {host.address}")
        self.loop.start(process, self._live(host, process), f"life of {name}")

    async def _live(self, host: Host, process: Process) -> None:
        node: Node | None = None
        failure: BaseException | None = None
        try:
            node = Node(self._config(host), self._ports(host), self.limits)
            await node.start()
            host.node = node
            host.lived = True
            self.oracles.born(node)
            self.transcript.note(host.name, "serves")
            failure = await node.stopped
        except Exception as error:
            failure = error
        if not process.dead:
            self._ended(host, failure)

    def _ended(self, host: Host, failure: BaseException | None) -> None:
        """The process exits by itself."""
        told = "".join(traceback.format_exception(failure)) if failure is not None else ""
        self.transcript.note(host.name, f"ends: {type(failure).__name__}", told)
        if isinstance(failure, DiskFull):  # no reason to end for a node that serves
            excused = host.node is None
        else:
            refused = host.node is None and host.damaged_life is not None
            excused = isinstance(failure, StorageFailed) and (host.excused or host.medium.refused or refused)
            excused = excused or self._removed(host.name, failure)
        if failure is not None and not excused:
            self.oracles.breach(f"{host.name} ended by itself: {failure!r}\n{told}")
        if isinstance(failure, StorageFailed):
            given_up = host.node is None and not host.excused and not host.medium.refused
            host.medium.refused = False
            host.excused = host.medium.disk.fail_sync_in is not None  # the next failure is on its way already
        else:
            given_up = False
        self.end(host.name, "exit")
        if given_up and host.damaged_life is not None:
            self.loop.at(self.loop.now + REPLACE_S, self._replace_disk, host.name, host.lives)
        else:
            self.loop.at(self.loop.now + START_AGAIN_S, self._start_again, host.name, host.lives)

    def _removed(self, name: str, failure: BaseException | None) -> bool:
        """It lost its disk, and was taken out of the cluster before it could tell: nobody lets it in again."""
        barred = isinstance(failure, TenfoldError) and failure.code is Code.INVALID_ARGUMENT
        return barred and name in self.map().removed

    def _start_again(self, name: str, life: int) -> None:
        host = self.hosts.get(name)
        if host is not None and host.process is None and host.lives == life:
            self.boot(name)

    def _replace_disk(self, name: str, life: int) -> None:
        """Its operator has read why it refuses to start."""
        host = self.hosts.get(name)
        if host is not None and host.process is None and host.lives == life:
            host.medium.wipe()
            self.transcript.note(name, "is given an empty disk")
            self.boot(name)

    def _config(self, host: Host) -> NodeConfig:
        if all(member.node != host.name for member in self.members):
            return NodeConfig(
                format=1,
                cluster_id=CLUSTER_ID.hex(),
                node=host.name,
                address=host.address,
                join=[each.address for each in self.hosts.values() if each is not host],
                born=host.lived,
            )
        return NodeConfig(
            format=1,
            cluster_id=CLUSTER_ID.hex(),
            node=host.name,
            address=host.address,
            shards=self.shards,
            replication_factor=self.replication_factor,
            members=self.members,
            born=host.lived,
        )

    def _ports(self, host: Host) -> Ports:
        now = lambda: self.loop.now  # noqa: E731
        return Ports(
            disk=host.medium.attach_disk(now),
            open_state=lambda: host.medium.attach_state(now),
            dial=lambda address: SimChannel(self.network, address),
            serve=self._serve,
            clock=BusyClock(host.clock, self.loop.spend, host.look_s) if host.look_s else host.clock,
            random=random.Random(host.chance.random()),
            spawn=self._spawn,
            boot_id=f"boot-{host.medium.boots}",
        )

    def _serve(self, handlers: Handlers, address: str) -> SimServer:
        return SimServer(self.network, handlers, address, self.limits, self._bug)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug(task.get_name(), error)

    def _bug(self, where: str, error: BaseException) -> None:
        self.oracles.breach(f"{where}: {error!r}\n{''.join(traceback.format_exception(error))}")

    def end(self, name: str, how: str) -> None:
        """Ends the process now: `kill` and `exit` leave the machine running, `power` does not."""
        host = self.hosts[name]
        process = host.process
        if process is None:
            return
        self.transcript.note(name, how)
        if host.node is not None:
            host.held = {shard: replica.core.replica for shard, replica in host.node.shards.replicas.items()}
        if host.medium.disk.fail_sync_in is None:
            host.excused = False  # whatever has failed has ended with it
        host.process = host.node = None
        self.oracles.died(name)
        if how == "power":
            host.medium.cut()
        else:
            host.medium.kill()
        self.network.gone(process, silent=how == "power")
        self.loop.kill(process)

    def knows_all(self, name: str) -> bool:
        """Whether the node's disk has the present address of every node."""
        identity = Identity(CLUSTER_ID, name)
        body = Sealed(self.hosts[name].medium.disk.attach(), MAP_PATH).read(identity)
        kept = {} if body is None else {m.node: m.address for m in meta_pb2.ShardMap.FromString(body).members}
        first = {member.node: member.address for member in self.members}
        return all((kept or first).get(each) == host.address for each, host in self.hosts.items())

    def move(self, name: str) -> None:
        """The next incarnation listens elsewhere."""
        host = self.hosts[name]
        host.moves += 1
        host.address = f"{host.address.partition(':')[0]}:{FIRST_PORT + host.moves}"

    # -- what is true now ----------------------------------------------------------------------------------------------

    def up(self) -> list[str]:
        return [name for name, host in self.hosts.items() if host.process is not None]

    def replicas(self, shard: int) -> dict[str, Replica]:
        """Of the nodes that serve."""
        found = {
            name: host.node.shards.replicas.get(shard) for name, host in self.hosts.items() if host.node is not None
        }
        return {name: replica for name, replica in found.items() if replica is not None}

    def map(self) -> meta_pb2.ShardMap:
        """The newest map that a node which serves knows, or else knew."""
        maps = [host.node.map.current for host in self.hosts.values() if host.node is not None]
        self._map = max([*maps, *([self._map] if self._map is not None else [])], key=lambda each: each.epoch)
        return self._map

    def placed(self, shard: int) -> meta_pb2.Shard:
        """The shard's row of that map."""
        return self.map().shards[shard]

    def holders(self, shard: int) -> list[str]:
        """The nodes that the map gives a replica."""
        return [each.node for each in self.placed(shard).replicas]

    def held(self, name: str, shard: int) -> int:
        """The id of the replica that is there, or was when the node went down; 0 for none."""
        host = self.hosts.get(name)
        if host is None or host.node is None:
            return host.held.get(shard, 0) if host is not None else 0
        replica = host.node.shards.replicas.get(shard)
        return replica.core.replica if replica is not None else 0

    def voters_in_force(self, shard: int) -> list[dict[int, str]]:
        """The lists that replicas which run and are on the map believe in: id -> node, "" where the map has none."""
        known = {row.id for row in self.placed(shard).replicas}
        return [
            {each: replica.node_of.get(each, "") for each in side}
            for replica in self.replicas(shard).values()
            if replica.core.replica in known
            for side in (replica.core.configuration.voters, replica.core.configuration.outgoing)
            if side
        ]

    def sides(self, shard: int) -> list[Side]:
        """The lists of which a majority is needed, all that may be in force now: what the map wants and what it wants to leave, and
        what the replicas that run believe. Nothing rests yet on a learner, which may be still to come."""
        found: list[Side] = []
        for going in (Stage.LEARNER, Stage.LEAVING):
            rows = [row for row in self.placed(shard).replicas if row.stage != going]
            there = [row for row in rows if row.stage == Stage.LEARNER or self.held(row.node, shard) == row.id]
            found.append(Side(len(rows), frozenset(row.node for row in there)))
        for side in self.voters_in_force(shard):
            there_too = (node for each, node in side.items() if node and self.held(node, shard) == each)
            found.append(Side(len(side), frozenset(there_too)))
        return [side for side in found if side.size]

    def leader(self, shard: int) -> str | None:
        led = {name: r.core.term for name, r in self.replicas(shard).items() if r.core.role is Role.LEADER}
        return max(led, key=lambda name: led[name], default=None)

    # -- clients -------------------------------------------------------------------------------------------------------

    def open_clients(self, count: int) -> None:
        for at in range(count):
            name = f"c{at + 1}"
            clock = HostClock(lambda: self.loop.now, offset_s=1000.0 * (at + 1))
            self.client_processes.append(Process(name, clock))

    def open_raw(self, count: int) -> list[Process]:
        """Processes of callers that are no clients; faults of the network hit them like others."""
        processes = [Process(f"x{at + 1}", HostClock(lambda: self.loop.now)) for at in range(count)]
        self.client_processes += processes
        return processes

    async def start_clients(self, deadline_s: float) -> None:
        """Returns when each has a map. TenfoldError."""
        for process in self.client_processes:
            self.clients.append(await self.loop.start(process, self._client(process.host, deadline_s), "client"))

    async def _client(self, name: str, deadline_s: float) -> Client:
        chance = random.Random(f"{self._seed}/client/{name}")
        client = Client(
            [member.address for member in self.members],
            deadline_s=deadline_s,
            dial=lambda address: SimChannel(self.network, address),
            random=chance,
            limits=draw_limits(chance, "client_", self.limits) if self.limits is not DEFAULT else DEFAULT,
        )
        await client.start()
        return client

    async def close(self) -> None:
        for process, client in zip(self.client_processes, self.clients, strict=False):
            await self.loop.start(process, client.close(), "close")
        for name in self.hosts:
            self.end(name, "kill")
