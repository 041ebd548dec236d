"""What waits for one shard: operations not yet sent, sub-requests to send again, the session.

Laws: what is in a call is in `flying`, what must be sent again in `resend`, everything else in `writes`, `gets` or `queries`; an
operation is in one place only. At most one call at a time carries requests of this queue, so a slow shard occupies one call. After
a failure the queue rests (backoff), unless the answer named a better node.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from client.flights import CommandFlight, Flight, GetFlight, Join, Ledger, OpenFlight, QueryFlight, own_command
from client.requests import Command, Get, Pending, Query, Write
from client.retry import ASK_ANOTHER, ATTEMPT_OVER, Trouble, again, at_deadline, of_code, settled
from client.router import Router
from client.session import Session
from client.tasks import Monotonic
from cluster.errors import TABLE, Code, Refresh, TenfoldError
from cluster.limits import Limits
from proto.gen import node_pb2

REDIRECTS_MAX = 3  # hints followed at once; then the queue rests, since two replicas may name each other for a while


class Budget:
    """What one call may still take. The first request always fits: it was checked against its own bounds."""

    __slots__ = ("bytes", "get_bytes", "reply_bytes", "requests", "used")

    def __init__(self, limits: Limits, get_bytes: int) -> None:
        self.bytes = limits.call_bytes_max
        self.requests = limits.call_requests_max
        self.reply_bytes = limits.message_bytes_max - limits.value_bytes_max
        self.get_bytes = get_bytes  # expected size of one value read
        self.used = False

    def admits(self, size: int, reply_bytes: int = 0) -> bool:
        if not self.used:
            return True
        return size <= self.bytes and reply_bytes <= self.reply_bytes and self.requests > 0

    def take(self, size: int, reply_bytes: int = 0, requests: int = 1) -> None:
        self.used = True
        self.bytes -= size
        self.reply_bytes -= reply_bytes
        self.requests -= requests


class ShardQueue:
    """`stale` queues carry stale reads only and ask any replica."""

    def __init__(
        self, shard: int, router: Router, ledger: Ledger, clock: Monotonic, limits: Limits, *, stale: bool
    ) -> None:
        self.shard = shard
        self.in_call = False
        self.rest: asyncio.TimerHandle | None = None
        self.lost = False  # the last refusal says that the map is wrong
        self.failures = 0
        self.redirects = 0
        self._trouble: Trouble | None = None
        self._better: bool | None = None  # what this call's first routing error taught
        self.stale_node = router.any_replica(shard) if stale else ""
        self._router, self._ledger, self._clock, self._limits = router, ledger, clock, limits
        self._writes: deque[Write | Command] = deque()
        self._gets: deque[Get] = deque()
        self._queries: deque[Query] = deque()
        self._resend: deque[Flight] = deque()
        self._flying: dict[Flight, None] = {}
        self._session: Session | None = None
        self._open_error: TenfoldError | None = None

    # -- before a call -------------------------------------------------------------------------------------------------

    def add(self, pending: Write | Command | Get | Query) -> None:
        if self._trouble is not None and not self.waits and not self._flying:
            self._trouble = None  # that of others, who are gone
        if isinstance(pending, Get):
            self._gets.append(pending)
        elif isinstance(pending, Query):
            self._queries.append(pending)
        else:
            self._writes.append(pending)

    @property
    def waits(self) -> bool:
        return bool(self._writes or self._gets or self._queries or self._resend)

    @property
    def resting(self) -> bool:
        return self.rest is not None

    @property
    def target(self) -> str:
        """The node to ask now."""
        return self.stale_node or self._router.leader(self.shard)

    def take(self, budget: Budget) -> list[Flight]:
        """What goes with the next call."""
        assert not self.in_call, "one call at a time carries a queue's requests"
        self._better = None
        taken: list[Flight] = []
        while self._resend and budget.admits(self._resend[0].size):
            flight = self._resend.popleft()
            budget.take(flight.size)
            taken.append(flight)
        if self._writes:
            self._take_commands(taken, budget)
        if self._gets:
            self._take_gets(taken, budget)
        while self._queries and budget.admits(self._queries[0].size, self._queries[0].reply_bytes):
            query = self._queries.popleft()
            if self._wanted(query):
                flight = QueryFlight(self.shard, query)
                budget.take(flight.size, flight.reply_bytes)
                taken.append(flight)
        for flight in taken:
            self._flying[flight] = None
        self.in_call = bool(taken)
        return taken

    def _wanted(self, pending: Pending) -> bool:
        """False for what its caller has given up before it was sent."""
        if pending.future.done():
            self._ledger.finish(pending, None)
        return not pending.left

    def _take_commands(self, taken: list[Flight], budget: Budget) -> None:
        session = self._session
        if session is None:
            if budget.admits(0):
                deadline = max(write.deadline for write in self._writes)
                flight: Flight = OpenFlight(self.shard, self._writes[0].capability, deadline)
                budget.take(flight.size)
                taken.append(flight)
            return
        for built in self._join(session, budget):
            flight = (
                built.depart(self.shard, session)
                if isinstance(built, Join)
                else own_command(self.shard, session, built)
            )
            taken.append(flight)

    def _join(self, session: Session, budget: Budget) -> list[Join | Command]:
        """Writes that wait, joined as far as the bounds go. A key's second write goes into a later command than its first,
        since no command writes a key twice: `level` counts the writes of a key before this one."""
        limits, writes = self._limits, self._writes
        built: list[Join | Command] = []
        by_level: list[Join] = []
        level_of: dict[bytes, int] = {}
        room = session.room(limits.session_window)
        while writes:
            write = writes[0]
            if write.future.done() or write.left:
                self._wanted(writes.popleft())
                continue
            if not budget.admits(write.size):
                break
            if isinstance(write, Command):
                if len(built) >= room:
                    break
                built.append(write)
                budget.take(write.size)
            else:
                keys = write.keys
                level = 1 + (
                    max([level_of.get(key, -1) for key in keys]) if len(keys) > 1 else level_of.get(keys[0], -1)
                )
                join = by_level[level] if level < len(by_level) else None
                if join is None or not join.fits(write):
                    if len(built) >= room or not budget.admits(write.size):
                        break
                    join = Join(limits.batch_ops_max, limits.request_bytes_max)
                    by_level[level : level + 1] = [join]
                    built.append(join)
                    budget.take(0)
                join.add(write)
                budget.take(write.size, requests=0)
                for key in write.keys:
                    level_of[key] = level
            writes.popleft()
        return built

    def _take_gets(self, taken: list[Flight], budget: Budget) -> None:
        groups: dict[node_pb2.Consistency.ValueType, list[Get]] = {}
        keys: dict[node_pb2.Consistency.ValueType, int] = {}
        while self._gets:
            get = self._gets[0]
            count = len(get.keys)
            reply_bytes = min(count * budget.get_bytes, self._limits.scan_bytes_max + self._limits.value_bytes_max)
            full = keys.get(get.consistency, 0) + count > self._limits.batch_ops_max and get.consistency in groups
            if full or not budget.admits(get.size, reply_bytes):
                break
            self._gets.popleft()
            if self._wanted(get):
                budget.take(get.size, reply_bytes, requests=0 if get.consistency in groups else 1)
                groups.setdefault(get.consistency, []).append(get)
                keys[get.consistency] = keys.get(get.consistency, 0) + count
        for consistency, group in groups.items():
            taken.append(GetFlight(self.shard, group, consistency, keys[consistency] * budget.get_bytes))

    # -- after a call --------------------------------------------------------------------------------------------------

    def answered(self, flight: Flight, reply: node_pb2.SubReply, node: str) -> bool:
        """Takes the answer to one sub-request. True if all is well or a better node is known: no need to rest."""
        if reply.code:
            error = of_code(reply.code, reply.message)
            return self.attempt_failed(flight, error, not error.definite, node, reply.leader, answer=reply.index > 0)
        del self._flying[flight]
        self.failures = self.redirects = 0
        self.lost = False
        self._trouble = None
        flight.deliver(reply, self._ledger)
        flight.close()
        if isinstance(flight, OpenFlight):
            assert self._session is None, "one session at a time"
            self._session = Session(reply.session)
            self._open_error = None
        elif isinstance(flight, GetFlight) and flight.unanswered:
            self._put_back(flight.unanswered)
        return True

    def attempt_failed(
        self, flight: Flight, error: TenfoldError, effect: bool, node: str, hint: str = "", *, answer: bool = False
    ) -> bool:
        """One attempt ended by `error`, perhaps with an effect. True as in `answered`. `answer`: the machine itself said it,
        for this very sequence, which settles every earlier attempt."""
        del self._flying[flight]
        flight.error = error
        self._met(error, hint)
        if error.code is Code.SESSION_EXPIRED and isinstance(flight, CommandFlight):
            return self._session_expired(flight, error)
        flight.in_doubt = flight.in_doubt or effect
        retriable = again(error, flight.deadline - self._clock.monotonic())
        better = self._learn(error, node, hint) if retriable else True
        if isinstance(flight, OpenFlight) and (error.retriable or error.code in ATTEMPT_OVER):
            self._open_error = error  # writes whose time is up end by `expire`; the others open again
        elif not retriable:
            self._end(flight, settled(error, flight.in_doubt and not answer and isinstance(flight, CommandFlight)))
        elif isinstance(flight, CommandFlight):
            self._keep(flight)
        else:
            for pending in flight.pending:
                pending.error = error
            self._put_back(flight.pending)
        return better

    def _met(self, error: TenfoldError, hint: str) -> None:
        if self._trouble is None:
            self._trouble = Trouble(self._clock.monotonic())
        self._trouble.add(error, hint)

    def _at_deadline(self, in_doubt: bool, last: TenfoldError | None) -> TenfoldError:
        return at_deadline(in_doubt, last, self.shard, self._trouble, self._clock.monotonic())

    def _keep(self, flight: CommandFlight) -> None:
        """To be sent again as it is; dropped if nobody waits for it any more."""
        if all(pending.left for pending in flight.pending):
            flight.close()
        else:
            self._resend.append(flight)

    def _session_expired(self, flight: CommandFlight, error: TenfoldError) -> bool:
        """The server does not know the session, or has forgotten its results.

        If every earlier attempt of this sub-request ended definitely, it was not applied: only an attempt could have
        applied it, the definite ones did not (that is what the table says), and this one was refused because of its
        session. No copy can be applied later either, since a session that is gone never comes back. So its operations may go
        under a new session. If an attempt is in doubt, it may have been applied before the session expired: unknown.
        """
        if self._session is flight.session:
            self._session = None
        if flight.in_doubt:
            self._end(flight, error)
        else:
            flight.close()
            self._put_back(flight.pending)
        return True

    def _put_back(self, pending: Iterable[Pending]) -> None:
        for each in reversed(list(pending)):
            if each.left:
                continue
            if isinstance(each, Get):
                self._gets.appendleft(each)
            elif isinstance(each, Query):
                self._queries.appendleft(each)
            else:
                assert isinstance(each, Write | Command)
                self._writes.appendleft(each)

    def _end(self, flight: Flight, error: TenfoldError) -> None:
        flight.close()
        for pending in flight.pending:
            self._ledger.finish(pending, error)
        if isinstance(flight, OpenFlight):  # no session to be had: the writes that wait cannot be sent, surely
            waiting, self._writes = self._writes, deque()
            for pending in waiting:
                self._ledger.finish(pending, error if error.definite else self._at_deadline(False, error))

    def _learn(self, error: TenfoldError, node: str, hint: str) -> bool:
        """Whom to ask next. True if that is known to be better than waiting; decided once a call."""
        if self._better is None:
            self._better = self._route(error.code, node, hint)
        return self._better

    def _route(self, code: Code, node: str, hint: str) -> bool:
        refresh = TABLE[code].refresh
        self.lost = refresh is Refresh.MAP
        if self.lost:
            self._router.map_is_wrong(node)
        if code is Code.SHUTTING_DOWN:
            self._router.failed(node, hangs=False)
        if refresh is Refresh.NOTHING and code not in ASK_ANOTHER:
            return False
        if self.stale_node:
            self.stale_node = self._router.any_replica(self.shard, node)
            return False
        if self._router.not_leader(self.shard, node, hint) and self.redirects < REDIRECTS_MAX:
            self.redirects += 1
            return True
        return False

    # -- the deadline --------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> float:
        """Ends what is due at `now`; the earliest deadline left (infinity if none)."""
        earliest = min(
            self._expire_waiting(self._writes, now),
            self._expire_waiting(self._gets, now),
            self._expire_waiting(self._queries, now),
        )
        for flight in list(self._flying):
            earliest = min(earliest, self._expire_flight(flight, now, flying=True))
        for flight in list(self._resend):
            earliest = min(earliest, self._expire_flight(flight, now, flying=False))
            if all(pending.left for pending in flight.pending):
                self._resend.remove(flight)
                flight.close()
        return earliest

    def _expire_waiting(self, waiting: deque[Write | Command] | deque[Get] | deque[Query], now: float) -> float:
        earliest = float("inf")
        kept: list[Pending] = []
        for pending in waiting:
            if pending.deadline > now:
                earliest = min(earliest, pending.deadline)
                kept.append(pending)
                continue
            # What waits here was not sent, or only asks: nothing was applied.
            self._ledger.finish(pending, self._at_deadline(False, pending.error or self._open_error))
        if len(kept) < len(waiting):
            waiting.clear()
            waiting.extend(kept)  # type: ignore[arg-type]
        return earliest

    def _expire_flight(self, flight: Flight, now: float, *, flying: bool) -> float:
        living = [pending for pending in flight.pending if not pending.left]
        due = [pending for pending in living if pending.deadline <= now]
        # While others wait for the same sub-request it is sent again and may yet be applied: unknown for those who leave.
        # A read has no effect, so there is nothing to doubt.
        in_doubt = isinstance(flight, CommandFlight) and (flying or flight.in_doubt or len(due) < len(living))
        for pending in due:
            self._ledger.finish(pending, self._at_deadline(in_doubt, flight.error or pending.error))
        return min((pending.deadline for pending in living if pending.deadline > now), default=float("inf"))

    def shut(self, error: TenfoldError, unknown: TenfoldError) -> None:
        """The client closes: what was never sent ends by `error`, the rest by `unknown`."""
        waiting: list[Iterable[Pending]] = [self._writes, self._gets, self._queries]
        for pending in [each for group in waiting for each in group]:
            self._ledger.finish(pending, error)
        for flight in [*self._flying, *self._resend]:
            for pending in flight.pending:
                self._ledger.finish(pending, unknown)
