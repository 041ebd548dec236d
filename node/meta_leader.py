"""The meta replica of this node, asked and written to by the node itself.

Law: whatever the node writes to meta goes through here, checked like a request of anyone's. Only the leader whose shard clock runs may
act for the cluster: it has committed in its own term, so what it has applied is all there was.
"""

from __future__ import annotations

import asyncio

from cluster.errors import Code, TenfoldError
from cluster.ring.shard_map import voters
from cluster.types import META_SHARD
from node.cluster_map import ClusterMap
from node.machines.meta import MetaMachine
from node.replica import Replica
from node.shards import Shards
from node.tickets import Latch, Proposal
from node.transport.peers import Peers
from proto.gen import entry_pb2, meta_pb2


class MetaLeader:
    """`changed` tells of everything that may change an answer here: meta's log, its leadership, its coming and going, the map."""

    def __init__(self, shards: Shards, map: ClusterMap, peers: Peers) -> None:
        self._shards = shards
        self._map = map
        self._peers = peers
        self._absent: list[asyncio.Future[None]] = []  # who waits while meta is not here
        shards.on_opened.append(self._opened)

    @property
    def replica(self) -> Replica | None:
        """None where meta is not on this node."""
        return self._shards.meta

    @property
    def term(self) -> int:
        """The term in which this node leads meta and may act; 0 while it does not."""
        replica = self.replica
        return replica.core.term if replica is not None and replica.leading and replica.clock.running else 0

    @property
    def map(self) -> meta_pb2.ShardMap | None:
        """The map as the replica here has applied it; None without one, and before the first."""
        replica = self.replica
        if replica is None:
            return None
        machine = replica.applier.machines["meta"]
        assert isinstance(machine, MetaMachine)
        return machine.map

    def led_map(self) -> meta_pb2.ShardMap:
        """The map, if this node leads meta; else TenfoldError NOT_LEADER with the leader's address, if known."""
        known = self.map
        if not self.term or known is None:
            raise self._not_leader()
        return known

    async def propose(self, command: meta_pb2.MetaCommand) -> meta_pb2.MetaResult:
        """Writes a command and waits until it is applied. TenfoldError: what the machine refused with, NOT_LEADER as above, or
        UNKNOWN_OUTCOME; each command may be repeated, since it says what is to be true."""
        replica = self.replica
        if not self.term or replica is None:
            raise self._not_leader()
        body = command.SerializeToString()
        checked, writes = self._shards.services["meta"].command(body, META_SHARD, self._shards.data_shards)
        latch = Latch()
        request = entry_pb2.Request(capability="meta", principal="node", body=body)
        proposal = Proposal(latch, request, checked, writes)
        replica.propose(proposal)
        await latch.future
        outcome = proposal.outcome
        assert outcome is not None
        if outcome.code == Code.NOT_LEADER:
            raise self._not_leader()
        if outcome.code:
            raise TenfoldError(Code(outcome.code), outcome.message)
        return meta_pb2.MetaResult.FromString(outcome.body)

    def changed(self) -> asyncio.Future[None]:
        """Resolved at the next change of meta here, of who leads it, of the map or of an address."""
        replica = self.replica
        if replica is None:
            future = self._map.changed()
            self._absent = [waiter for waiter in self._absent if not waiter.done()]
            self._absent.append(future)
            return future
        future = replica.changed()
        self._map.notify(future)
        return future

    def _opened(self, replica: Replica) -> None:
        if replica.shard == META_SHARD:
            waiters, self._absent = self._absent, []
            for future in waiters:
                if not future.done():
                    future.set_result(None)

    def _not_leader(self) -> TenfoldError:
        leader = self._leader_address()
        return TenfoldError(Code.NOT_LEADER, "this node does not lead meta", **({"leader": leader} if leader else {}))

    def _leader_address(self) -> str:
        """Where the leader is thought to be; where meta is not on this node, a member that has it and knows more."""
        addresses = self._map.addresses()
        replica = self.replica
        if replica is not None:
            leader = replica.leader_node()
            return addresses.get(leader, "") if leader != self._shards.node else ""
        shards = self._map.current.shards
        holders = [each.node for each in voters(shards[META_SHARD])] if shards else []
        up = self._peers.up()
        return next((addresses[node] for node in holders if node in up and node in addresses), "")
