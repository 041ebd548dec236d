"""The `Node` service: one call from a client carries its sub-requests for all shards led here.

Per sub-request: find the replica, let the capability validate, propose or query, unwrap. Every sub-request has an answer
of its own; only what concerns the whole call (another cluster, a bound, a deadline already passed) refuses the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ports import Clock
from node.cluster_map import ClusterMap
from node.pump import Pump
from node.replica import Replica
from node.services import fences
from node.services.admin import AdminService
from node.shards import Shards
from node.tickets import Latch, Proposal, Read, Ticket
from proto.gen import entry_pb2, meta_pb2, node_pb2

WATCHED = "kv"
"""Whose changes a watch that names no capability is told."""


class CallContext(Protocol):
    def remaining_s(self) -> float | None: ...


class NodeService:
    def __init__(
        self,
        *,
        shards: Shards,
        map: ClusterMap,
        pump: Pump,
        services: Mapping[str, Any],
        clock: Clock,
        limits: Limits,
        admin: AdminService,
        status: Any,
        stop: Any,
    ) -> None:
        self.draining = False
        self._watches = 0
        self._shards = shards
        self._map = map
        self._pump = pump
        self._services = services
        self._clock = clock
        self._limits = limits
        self._admin = admin
        self._status = status
        self._stop = stop

    async def call(self, request: node_pb2.CallRequest, context: CallContext) -> node_pb2.CallReply:
        deadline_s = self._check(request, context)
        latch = Latch()
        latch.remaining = 1  # ours, so that it cannot open while tickets are still being made
        served = [self._start(sub, request.principal, latch) for sub in request.requests]
        latch.count_down()
        if not latch.future.done():
            timer = asyncio.get_running_loop().call_later(deadline_s, latch.open)
            try:
                await latch.future
            finally:
                timer.cancel()
        reply = node_pb2.CallReply(epoch=self._map.epoch)
        room = self._limits.message_bytes_max // 2
        for sub, ticket in zip(request.requests, served, strict=True):
            if ticket.outcome is None:
                ticket.expire()
            one = self._unwrap(sub, ticket)
            room -= len(one.body)
            if room < 0 and one.body:  # asked again, a read is made anew and a write's kept answer is given
                code = Code.OVERLOADED if sub.mode == node_pb2.QUERY else Code.UNKNOWN_OUTCOME
                one = node_pb2.SubReply(code=int(code), message="the call's answers are too large together")
            reply.replies.append(one)
        return reply

    def _check(self, request: node_pb2.CallRequest, context: CallContext) -> float:
        limits = self._limits
        if request.cluster_id and request.cluster_id != self._map.current.cluster_id:
            raise TenfoldError(Code.WRONG_CLUSTER)
        if len(request.principal) > limits.principal_bytes_max:
            raise invalid("principal", f"{len(request.principal)} characters, at most {limits.principal_bytes_max}")
        if not 1 <= len(request.requests) <= limits.call_requests_max:
            raise invalid("requests", f"{len(request.requests)}, must be 1 to {limits.call_requests_max}")
        deadline_ms = request.deadline_ms or limits.deadline_ms_default
        if deadline_ms > limits.deadline_ms_max:
            raise invalid("deadline_ms", f"{deadline_ms}, at most {limits.deadline_ms_max}")
        remaining_s = context.remaining_s()
        if remaining_s is not None and remaining_s <= 0:
            raise TenfoldError(Code.DEADLINE_PASSED)
        return deadline_ms / 1000 if remaining_s is None else min(deadline_ms / 1000, remaining_s)

    def _start(self, sub: node_pb2.SubRequest, principal: str, latch: Latch) -> Ticket:
        try:
            return self._begin(sub, principal, latch)
        except TenfoldError as error:
            refused = Ticket(latch)
            refused.fail(error.code, error.message)
            return refused

    def _begin(self, sub: node_pb2.SubRequest, principal: str, latch: Latch) -> Ticket:
        if self.draining:
            raise TenfoldError(Code.SHUTTING_DOWN)
        if self._pump.disk_full and not (sub.mode == node_pb2.QUERY and sub.consistency == node_pb2.STALE):
            raise TenfoldError(Code.DISK_FULL)
        service = self._services.get(sub.capability)
        if service is None:
            raise TenfoldError(Code.UNKNOWN_CAPABILITY, f"capability: {sub.capability!r}")
        if len(sub.body) > self._limits.request_bytes_max:
            raise invalid("body", f"{len(sub.body)} bytes, at most {self._limits.request_bytes_max}")
        replica = self._shards.lookup(sub.shard, sub.shard_version)
        if sub.fences and sub.mode != node_pb2.COMMAND:
            raise invalid("fences", "are for commands only")
        if sub.mode == node_pb2.QUERY:
            query = service.query(sub.body, sub.shard, self._shards.data_shards)
            return self._query(replica, Read(latch, sub.capability, query), sub.consistency)
        if not service.client_commands:
            raise invalid("capability", f"{sub.capability!r} takes no commands from clients")
        if sub.mode == node_pb2.OPEN_SESSION:
            opening = entry_pb2.Request(capability=sub.capability, principal=principal, open_session=True)
            proposal = Proposal(latch, opening, None, frozenset())
        else:
            command, writes = service.command(sub.body, sub.shard, self._shards.data_shards)
            request = _request(sub, principal)
            if sub.fences:
                writes = fences.checked(request, sub.shard, self._shards.data_shards, writes, self._limits)
            proposal = Proposal(latch, request, command, writes)
        replica.propose(proposal)
        return proposal

    def _query(self, replica: Replica, read: Read, consistency: int) -> Ticket:
        if consistency == node_pb2.LINEARIZABLE:
            replica.read(read)
            return read
        self._pump.advance_ticks()  # after a pause the lease must not look younger than it is
        if consistency == node_pb2.STALE:
            replica.stale_read(read, self._clock.monotonic())
        else:
            replica.lease_read(read)
        return read

    def _unwrap(self, sub: node_pb2.SubRequest, ticket: Ticket) -> node_pb2.SubReply:
        outcome = ticket.outcome
        assert outcome is not None
        reply = node_pb2.SubReply(
            code=outcome.code, message=outcome.message, body=outcome.body, index=outcome.index, stale_ms=ticket.stale_ms
        )
        if outcome.session:
            reply.session = outcome.session
        if outcome.code in (Code.NOT_LEADER, Code.UNKNOWN_OUTCOME, Code.SHUTTING_DOWN):
            replica = self._shards.replicas.get(sub.shard)
            reply.leader = replica.leader_hint() if replica is not None else ""
        return reply

    # -- watches -------------------------------------------------------------------------------------------------------

    async def watch(self, request: node_pb2.WatchRequest, context: CallContext) -> AsyncIterator[node_pb2.WatchReply]:
        """Changes of one shard from `after_index` on, without gap or duplicate, until leadership moves."""
        self._watches += 1
        try:
            if self._watches > self._limits.watches_max:
                raise TenfoldError(Code.OVERLOADED, f"more than {self._limits.watches_max} watches on this node")
            if request.cluster_id and request.cluster_id != self._map.current.cluster_id:
                raise TenfoldError(Code.WRONG_CLUSTER)
            if not hasattr(self._services.get(request.capability or WATCHED), "event"):
                raise TenfoldError(Code.UNKNOWN_CAPABILITY, f"capability: {request.capability!r} tells no changes")
            replica = self._shards.lookup(request.shard, request.shard_version)
            confirmed = await self._confirmed_index(replica)
            after = confirmed if request.from_now else request.after_index
            if after > confirmed:
                raise TenfoldError(Code.INVALID_CURSOR, f"after_index: {after} is above the shard's {confirmed}")
            yield node_pb2.WatchReply(index=after)
            term = replica.core.term
            told_s = self._clock.monotonic()
            while replica.leading and replica.core.term == term and not self.draining:
                changed = replica.changed()
                reply = self._page(replica, request, after)
                now = self._clock.monotonic()
                if reply.events or (reply.index > after and now - told_s > 1.0):
                    after, told_s = reply.index, now
                    yield reply
                    continue
                after = reply.index
                if after < replica.applier.feed.last_index:
                    await asyncio.sleep(0)  # a page of other keys' changes: read on, but let others run
                else:
                    await changed
            raise TenfoldError(Code.SHUTTING_DOWN if self.draining else Code.NOT_LEADER)
        except TenfoldError as error:
            reply = node_pb2.WatchReply(code=int(error.code), message=error.message)
            reply.floor = int(str(error.details.get("floor", 0)))
            held = self._shards.replicas.get(request.shard)
            reply.leader = held.leader_hint() if held is not None else ""
            yield reply
        finally:
            self._watches -= 1

    async def _confirmed_index(self, replica: Replica) -> int:
        """The applied index of a leader that is surely the leader now."""
        latch = Latch()
        read = Read(latch, "", None)
        replica.read(read)
        timer = asyncio.get_running_loop().call_later(self._limits.deadline_ms_default / 1000, read.expire)
        try:
            await latch.future
        finally:
            timer.cancel()
        assert read.outcome is not None
        if read.outcome.code:
            raise TenfoldError(Code(read.outcome.code), read.outcome.message)
        return read.outcome.index

    def _page(self, replica: Replica, request: node_pb2.WatchRequest, after: int) -> node_pb2.WatchReply:
        feed = replica.applier.feed
        capability = request.capability or WATCHED
        found, told = feed.read(after, request.start, request.end, self._limits.watch_batch_bytes_max, capability)
        message = self._services[capability].event
        events = [message(index, key, event).SerializeToString() for index, _, key, event in found]
        return node_pb2.WatchReply(index=told, events=events)

    # -- the node itself -----------------------------------------------------------------------------------------------

    async def watch_map(self, request: node_pb2.MapRequest, context: CallContext) -> AsyncIterator[meta_pb2.ShardMap]:
        """The map, at once if newer than the epoch named, and again at every change; a node that joins has none yet."""
        changed = self._map.changed()
        if self._map.epoch > request.above_epoch:
            yield self._map.with_addresses()
        while not self.draining:
            await changed
            changed = self._map.changed()
            if self._map.epoch:
                yield self._map.with_addresses()

    async def status(self, request: node_pb2.StatusRequest, context: CallContext) -> node_pb2.StatusReply:
        reply: node_pb2.StatusReply = self._status(digests=request.digests)
        return reply

    async def stop(self, request: node_pb2.StopRequest, context: CallContext) -> node_pb2.StopReply:
        self._stop()
        return node_pb2.StopReply()

    # -- the cluster ---------------------------------------------------------------------------------------------------

    async def join(self, request: node_pb2.JoinRequest, context: CallContext) -> node_pb2.JoinReply:
        return await self._cluster().join(request)

    async def drain(self, request: node_pb2.DrainRequest, context: CallContext) -> node_pb2.AdminReply:
        return await self._cluster().drain(request)

    async def remove(self, request: node_pb2.RemoveRequest, context: CallContext) -> node_pb2.AdminReply:
        return await self._cluster().remove(request)

    async def rebalance(self, request: node_pb2.RebalanceRequest, context: CallContext) -> node_pb2.RebalanceReply:
        return await self._cluster().rebalance(request)

    async def driver_status(
        self, request: node_pb2.DriverStatusRequest, context: CallContext
    ) -> node_pb2.DriverStatusReply:
        return await self._cluster().driver_status(request)

    def _cluster(self) -> AdminService:
        if self.draining:
            raise TenfoldError(Code.SHUTTING_DOWN)
        return self._admin


def _request(sub: node_pb2.SubRequest, principal: str) -> entry_pb2.Request:
    return entry_pb2.Request(
        capability=sub.capability,
        session=sub.session,
        sequence=sub.sequence,
        low_water=sub.low_water,
        principal=principal,
        body=sub.body,
        fences=sub.fences,
    )
