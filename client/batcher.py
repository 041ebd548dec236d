"""One call in flight per node; what waits meanwhile, joins the next one.

grpc's cost is per call, not per operation, so operations wait only while a call to their node is out, and never by a timer. All
that is enqueued in one pass of the loop leaves together. A call that is out longer than `client_patience_ms` lets a further one go,
with other shards; at most `client_calls_max`. One future per operation or batch, one task per call.
"""

from __future__ import annotations

import asyncio

from client.flights import Flight, GetFlight, Ledger
from client.requests import Command, Get, Query, Write
from client.retry import attempt_s, backoff_s, of_call
from client.router import Router
from client.shard_queue import Budget, ShardQueue
from client.tasks import Monotonic, Tasks
from cluster.errors import Code, TenfoldError
from cluster.limits import KIB, Limits
from cluster.ports import ChannelBroken, Random
from proto.gen import node_pb2

GRACE_S = 0.25  # for the answer to travel
SWEEP_SLACK_S = 0.005  # operations enqueued together end together
GET_BYTES_FIRST = 4 * KIB


class Lane:
    """The calls to one node."""

    __slots__ = ("calls", "flush_handle", "last_start", "node", "patience_handle", "ready")

    def __init__(self, node: str) -> None:
        self.node = node
        self.calls = 0
        self.last_start = 0.0
        self.ready: dict[ShardQueue, None] = {}
        self.flush_handle: asyncio.Handle | None = None
        self.patience_handle: asyncio.TimerHandle | None = None


class Call:
    """Sub-requests on their way to one node."""

    __slots__ = ("flights", "lane", "queues", "request", "timeout_s")

    def __init__(self, lane: Lane, queues: list[ShardQueue], flights: list[tuple[ShardQueue, Flight]]) -> None:
        self.lane, self.queues, self.flights = lane, queues, flights
        self.request = node_pb2.CallRequest()
        self.timeout_s = 0.0


class Batcher:
    """`principal` names who asks, in every call."""

    def __init__(
        self, router: Router, tasks: Tasks, clock: Monotonic, random: Random, limits: Limits, principal: str = ""
    ) -> None:
        self._router, self._tasks, self._clock, self._random, self._limits = router, tasks, clock, random, limits
        self._principal = principal
        self._ledger = Ledger(limits.client_queue_ops_max, limits.client_queue_bytes_max)
        self._queues: dict[tuple[int, bool], ShardQueue] = {}
        self._lanes: dict[str, Lane] = {}
        self._get_bytes = GET_BYTES_FIRST
        self._sweep_at = float("inf")
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._closed = False
        router.on_moved = self._moved
        self.calls = 0  # sent so far
        self.requests = 0

    def add(self, shard: int, pending: Write | Command | Get | Query) -> None:
        """Enqueues; the outcome comes by the future. OVERLOADED when the client holds too much, SHUTTING_DOWN when closed."""
        if self._closed:
            raise TenfoldError(Code.SHUTTING_DOWN, "the client is closed")
        self._ledger.admit(pending)
        stale = isinstance(pending, Get | Query) and pending.consistency == node_pb2.STALE
        queue = self._queues.get((shard, stale))
        if queue is None:
            queue = ShardQueue(shard, self._router, self._ledger, self._clock, self._limits, stale=stale)
            self._queues[shard, stale] = queue
        queue.add(pending)
        if pending.deadline < self._sweep_at:
            self._arm_sweep(pending.deadline)
        if not queue.in_call and not queue.resting:
            self._make_ready(queue)

    def close(self) -> None:
        """Ends everything that waits: never sent is definite, sent is unknown."""
        self._closed = True
        for queue in self._queues.values():
            queue.shut(
                TenfoldError(Code.SHUTTING_DOWN, "the client was closed"),
                TenfoldError(Code.UNKNOWN_OUTCOME, "the client was closed while the request was in flight"),
            )
        for handle in [self._sweep_handle, *(lane.flush_handle for lane in self._lanes.values())]:
            if handle is not None:
                handle.cancel()
        for lane in self._lanes.values():
            if lane.patience_handle is not None:
                lane.patience_handle.cancel()

    # -- sending -------------------------------------------------------------------------------------------------------

    def _make_ready(self, queue: ShardQueue) -> None:
        node = queue.target
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = Lane(node)
        if queue not in lane.ready:
            lane.ready[queue] = None
        if lane.flush_handle is None:
            self._flush_soon(lane)

    def _flush_soon(self, lane: Lane) -> None:
        if lane.calls == 0:
            lane.flush_handle = asyncio.get_running_loop().call_soon(self._flush, lane)
        elif lane.calls < self._limits.client_calls_max and lane.patience_handle is None:
            due = lane.last_start + self._limits.client_patience_ms / 1000 - self._clock.monotonic()
            lane.patience_handle = asyncio.get_running_loop().call_later(max(0.0, due), self._patience_over, lane)

    def _patience_over(self, lane: Lane) -> None:
        lane.patience_handle = None
        if lane.calls < self._limits.client_calls_max and lane.ready:
            self._flush(lane)

    def _flush(self, lane: Lane) -> None:
        lane.flush_handle = None
        if self._closed:
            return
        call = self._collect(lane)
        if call is not None:
            lane.calls += 1
            lane.last_start = self._clock.monotonic()
            self._tasks(self._run(call), f"call to {lane.node}")
        if lane.ready and lane.calls:
            self._flush_soon(lane)  # what did not fit, once patience is over

    def _collect(self, lane: Lane) -> Call | None:
        now = self._clock.monotonic()
        budget = Budget(self._limits, self._get_bytes)
        queues: list[ShardQueue] = []
        flights: list[tuple[ShardQueue, Flight]] = []
        for queue in list(lane.ready):
            if queue.target != lane.node or queue.in_call or queue.resting:
                del lane.ready[queue]
                if not queue.in_call and not queue.resting:
                    self._make_ready(queue)
                continue
            if not budget.admits(0):
                break
            taken = queue.take(budget)
            if taken or not queue.waits:
                del lane.ready[queue]
            if taken:
                queues.append(queue)
                flights += [(queue, flight) for flight in taken]
        if not flights:
            return None
        return self._build(Call(lane, queues, flights), now)

    def _build(self, call: Call, now: float) -> Call:
        request, router = call.request, self._router
        deadline = max([flight.deadline for _, flight in call.flights])
        request.cluster_id = router.cluster_id
        request.principal = self._principal
        for _, flight in call.flights:
            flight.fill(request.requests.add(), router.version(flight.shard))
        attempts = max([flight.attempts for _, flight in call.flights])
        # The node answers at the attempt's end with what it has; only a node that hangs is given up by ourselves.
        attempt = max(0.001, min(deadline - now, attempt_s(attempts, self._limits)))
        request.deadline_ms = max(1, int(attempt * 1000))
        call.timeout_s = attempt + GRACE_S
        self.calls += 1
        self.requests += len(call.flights)
        return call

    async def _run(self, call: Call) -> None:
        node = call.lane.node
        try:
            channel = self._router.channel(node)
            reply = await channel.call("Node", "Call", call.request, timeout_s=call.timeout_s)
            if len(reply.replies) != len(call.flights):
                raise TenfoldError(Code.INTERNAL, f"{len(reply.replies)} replies to {len(call.flights)} requests")
        except (ChannelBroken, TimeoutError, TenfoldError) as failure:
            self._call_failed(call, failure)
        except Exception as bug:
            self._call_failed(call, bug)
            raise
        else:
            self._call_answered(call, reply)
        finally:
            if not self._closed:
                self._call_ended(call)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _call_answered(self, call: Call, reply: node_pb2.CallReply) -> None:
        self._router.answered(call.lane.node, reply.epoch)
        rests: dict[ShardQueue, None] = {}
        for (queue, flight), sub in zip(call.flights, reply.replies, strict=True):
            if not queue.answered(flight, sub, call.lane.node):
                rests[queue] = None
            if isinstance(flight, GetFlight) and flight.value_bytes:
                self._get_bytes = max(flight.value_bytes, self._get_bytes >> 1, 64)
        for queue in rests:
            self._rest(queue)

    def _call_failed(self, call: Call, failure: Exception) -> None:
        error, effect = of_call(failure)
        node = call.lane.node
        if error.code in (Code.UNAVAILABLE, Code.INTERNAL):
            # The answer may have been larger than a message: expect the worst until small values are seen again.
            self._get_bytes = self._limits.value_bytes_max
        if error.code in (Code.UNAVAILABLE, Code.UNREACHABLE):
            self._router.failed(node, hangs=isinstance(failure, TimeoutError))
        for queue, flight in call.flights:
            queue.attempt_failed(flight, error, effect, node)
        for queue in call.queues:
            self._rest(queue)

    def _rest(self, queue: ShardQueue) -> None:
        if queue.resting:
            return
        queue.failures += 1
        queue.redirects = 0
        pause = backoff_s(queue.failures, self._limits, self._random)
        queue.rest = asyncio.get_running_loop().call_later(pause, self._rested, queue)

    def _moved(self, shards: frozenset[int]) -> None:
        """A newer map changed these: what was refused for the old one need not rest any longer."""
        for queue in self._queues.values():
            if queue.lost and queue.rest is not None and queue.shard in shards:
                queue.rest.cancel()
                self._rested(queue)

    def _rested(self, queue: ShardQueue) -> None:
        queue.rest = None
        if queue.waits and not queue.in_call and not self._closed:
            self._make_ready(queue)

    def _call_ended(self, call: Call) -> None:
        lane = call.lane
        lane.calls -= 1
        assert lane.calls >= 0
        for queue in call.queues:
            queue.in_call = False
            if queue.waits and not queue.resting:
                self._make_ready(queue)
        if lane.ready and lane.flush_handle is None:
            if lane.patience_handle is not None and lane.calls == 0:
                lane.patience_handle.cancel()
                lane.patience_handle = None
            self._flush_soon(lane)

    # -- deadlines -----------------------------------------------------------------------------------------------------

    def _arm_sweep(self, at: float) -> None:
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        self._sweep_at = at
        pause = max(0.0, at - self._clock.monotonic())
        self._sweep_handle = asyncio.get_running_loop().call_later(pause, self._sweep)

    def _sweep(self) -> None:
        now = self._clock.monotonic() + SWEEP_SLACK_S
        self._sweep_handle, self._sweep_at = None, float("inf")
        earliest = min([queue.expire(now) for queue in self._queues.values()], default=float("inf"))
        if earliest < float("inf"):
            self._arm_sweep(earliest)
