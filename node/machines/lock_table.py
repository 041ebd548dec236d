"""The locks, leases and queues of a shard: in memory, every change written through to the view.

Laws: a token is above every earlier one of its name. Nobody is granted a lock whose lease has ended, or whose wait is over, at the
stamp; nobody overtakes. Who is freed wakes as many from the head as can hold together, and no others. An entry tells one event
per attempt and one per lock: the state it leaves.
"""

from __future__ import annotations

from typing import Any, TypeVar

from cluster.limits import Limits
from cluster.ports import ReadView, View
from node.machines.lock_deadlines import Deadlines
from node.machines.lock_graph import WaitGraph
from node.machines.lock_rows import (
    Claim,
    ClaimKey,
    Lease,
    Lock,
    attempt_key,
    encode_lease,
    lease_key,
    read_locks,
)
from node.machines.machine import Stamp
from proto.gen.lock_pb2 import EXCLUSIVE, SEMAPHORE, SHARED, LockEvent, LockHolder

CANCELLED, GRANTED, LOST, TIMED_OUT = LockEvent.CANCELLED, LockEvent.GRANTED, LockEvent.LOST, LockEvent.TIMED_OUT
K = TypeVar("K")
EXPIRED = "the lease expired"
WHOLE = 1 << 62
Touched = dict[str, tuple[Lock, bool]]
"""Locks to be settled, by name, and whether their holders changed."""


class LockTable:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._begin({}, {})

    def _begin(self, leases: dict[int, Lease], locks: dict[str, Lock]) -> None:
        self.leases = leases
        self.locks = locks
        self.graph = WaitGraph()
        self.waiting: dict[ClaimKey, Claim] = {}
        self._delayed: dict[str, Lock] = {}
        self._passing: dict[str, Lock] = {}  # only their last token keeps them
        for lock in locks.values():
            for claim in lock.holders.values():
                self.graph.held(claim.owner, 1)
            for claim in lock.waiters.values():
                self.graph.begin(claim)
                self.waiting[claim.key] = claim
            if lock.delay_until_ms:
                self._delayed[lock.name] = lock
            elif lock.first() is None:
                self._passing[lock.name] = lock
        self._lease_ends = Deadlines(leases, lambda lease: lease.expires_ms)
        self._wait_ends = Deadlines(self.waiting, lambda claim: claim.until_ms)
        self._delay_ends = Deadlines(self._delayed, lambda lock: lock.delay_until_ms)

    def load(self, view: ReadView) -> None:
        self._begin(*read_locks(view))

    # ---- leases

    def live(self, lease: Lease, expires_ms: int, view: View) -> None:
        """Begins it, or renews it, which never shortens it."""
        if lease.id not in self.leases:
            self.leases[lease.id] = lease
            self._lease_ends.push(lease.id)
        elif expires_ms <= lease.expires_ms:
            return
        lease.expires_ms = expires_ms
        view.put(lease_key(lease.id), encode_lease(lease))

    def close(self, lease: Lease, view: View) -> None:
        assert not lease.claims, f"lease {lease.id} ends with all that it holds"
        del self.leases[lease.id]
        view.delete(lease_key(lease.id))

    # ---- claims

    def grant(self, claim: Claim, token: int, stamp: Stamp, view: View) -> None:
        """To a claim that is in no queue. `token` 0: the next. `settle` follows."""
        lock = claim.lock
        self.locks[lock.name] = lock
        if not token:
            token = lock.last_token = max(stamp.index, lock.last_token + 1)
        claim.token, claim.since_ms, claim.until_ms = token, stamp.time_ms, 0
        lock.admit(claim)
        claim.lease.claims[claim.attempt] = claim
        self.graph.held(claim.owner, 1)
        view.put(claim.stored_key(), claim.encode())

    def enqueue(self, claim: Claim, until_ms: int, stamp: Stamp, view: View) -> None:
        claim.index, claim.since_ms, claim.until_ms = stamp.index, stamp.time_ms, until_ms
        claim.lock.waiters[claim.key] = claim
        claim.lease.claims[claim.attempt] = claim
        self.waiting[claim.key] = claim
        self._wait_ends.push(claim.key)
        self.graph.begin(claim)
        view.put(claim.stored_key(), claim.encode())

    def drop(self, claim: Claim, view: View) -> None:
        """It holds or waits no more; `settle` follows."""
        lock = claim.lock
        view.delete(claim.stored_key())
        del claim.lease.claims[claim.attempt]
        if claim.token:
            del lock.holders[claim.key]
            lock.permits -= claim.permits
            self.graph.held(claim.owner, -1)
        else:
            self._leave(claim)

    def _leave(self, claim: Claim) -> None:
        del claim.lock.waiters[claim.key]
        del self.waiting[claim.key]
        self.graph.end(claim)

    def delay(self, lock: Lock, until_ms: int) -> None:
        """Nobody is granted it until a pulse at that time or later; `settle` follows."""
        if until_ms > lock.delay_until_ms:
            lock.delay_until_ms = until_ms
            self._delayed[lock.name] = lock
            self._delay_ends.push(lock.name)

    def end_delay(self, lock: Lock) -> None:
        if lock.delay_until_ms:
            lock.delay_until_ms = 0
            del self._delayed[lock.name]

    def settle(self, lock: Lock, stamp: Stamp, view: View, *, changed: bool) -> None:
        """Grants to those who wait, tells the lock's state if its holders changed, and keeps or deletes its record. Once per
        lock and entry, after all else."""
        now_ms = stamp.time_ms
        while lock.waiters and not lock.delay_until_ms:
            claim = next(iter(lock.waiters.values()))
            if not claim.alive(now_ms):
                self.drop(claim, view)
                tell(claim, LOST, EXPIRED, stamp)
            elif claim.until_ms <= now_ms:
                self.drop(claim, view)
                tell(claim, TIMED_OUT, "", stamp)
            elif lock.fits(claim.mode, claim.permits):
                view.delete(claim.stored_key())
                self._leave(claim)
                self.grant(claim, 0, stamp, view)
                tell(claim, GRANTED, "", stamp)
                changed = True
            else:
                break
        if changed:
            _tell_state(lock, stamp)
        self._write_header(lock, stamp.index, view)

    def _write_header(self, lock: Lock, index: int, view: View) -> None:
        header = lock.header_wanted(index)
        if header != lock.header:
            lock.header = header
            if header is None:
                view.delete(b"l" + lock.name.encode())
            else:
                view.put(b"l" + lock.name.encode(), header)
        if lock.holders or lock.waiters or lock.delay_until_ms:
            self._passing.pop(lock.name, None)
        elif header is not None:
            self._passing[lock.name] = lock
        else:
            self._passing.pop(lock.name, None)
            del self.locks[lock.name]

    # ---- time

    def due(self, now_ms: int) -> bool:
        return self._lease_ends.due(now_ms) or self._wait_ends.due(now_ms) or self._delay_ends.due(now_ms)

    def pulse(self, stamp: Stamp, view: View) -> None:
        """All leases that are due end before anybody is granted what they held. One that has more than there is room for ends over
        several pulses: until the last it is there, and dead. Those who may be woken count as well."""
        now_ms, room = stamp.time_ms, self._limits.pulse_keys_max
        touched: Touched = {}
        while room > 0 and self._lease_ends.due(now_ms):
            lease = self.leases[_first(self._lease_ends)]
            taken, room = self._take(lease, touched, view, room - 1)
            self._keep_delays(taken, now_ms)
            for claim in taken:
                tell(claim, LOST, EXPIRED, stamp)
        while room > 0 and self._wait_ends.due(now_ms):
            claim = self.waiting[_first(self._wait_ends)]
            lock = claim.lock
            room -= _cost(lock, touched)
            self.drop(claim, view)
            tell(claim, TIMED_OUT, "", stamp)
            touched.setdefault(lock.name, (lock, False))
        while room > 0 and self._delay_ends.due(now_ms):
            lock = self._delayed[_first(self._delay_ends)]
            room -= _cost(lock, touched)
            self.end_delay(lock)
            touched.setdefault(lock.name, (lock, False))
        for lock in [lock for lock in self._passing.values() if lock.last_token <= stamp.index]:
            touched.setdefault(lock.name, (lock, False))
        for lock, changed in touched.values():
            self.settle(lock, stamp, view, changed=changed)

    def end(self, lease: Lease, stamp: Stamp, view: View, *, unclean: bool) -> None:
        """Because it was asked for, `unclean` by one who does not know whether its holder still acts. Who held is not told, being
        who asked."""
        touched: Touched = {}
        taken, _ = self._take(lease, touched, view, WHOLE)
        if unclean:
            self._keep_delays(taken, stamp.time_ms)
        for claim in taken:
            if not claim.token:
                tell(claim, CANCELLED, "", stamp)
        for lock, changed in touched.values():
            self.settle(lock, stamp, view, changed=changed)

    def _keep_delays(self, taken: list[Claim], now_ms: int) -> None:
        for claim in taken:
            if claim.token and claim.delay_ms:
                self.delay(claim.lock, now_ms + claim.delay_ms)

    def _take(self, lease: Lease, touched: Touched, view: View, room: int) -> tuple[list[Claim], int]:
        """Drops as many of its claims as there is room for, at least one, and with the last one the lease. Those, in one order on
        all replicas, and the room that is left."""
        taken: list[Claim] = []
        for _, claim in sorted(lease.claims.items()):
            if taken and room <= 0:
                break
            room -= _cost(claim.lock, touched)
            taken.append(claim)
            self.drop(claim, view)
            before = touched.get(claim.lock.name)
            touched[claim.lock.name] = (claim.lock, claim.token > 0 or (before is not None and before[1]))
        if not lease.claims:
            self.close(lease, view)
        return taken, room

    # ---- laws

    def check_invariants(self, view: ReadView) -> None:
        other = LockTable(self._limits)
        other.load(view)
        assert self.leases.keys() == other.leases.keys(), "the leases in memory are those in the view"
        assert self.locks.keys() == other.locks.keys(), "the locks in memory are those in the view"
        for id, lease in self.leases.items():
            rebuilt_lease = other.leases[id]
            assert lease.expires_ms == rebuilt_lease.expires_ms, f"lease {id}: its end can be rebuilt"
            assert lease.principal == rebuilt_lease.principal, f"lease {id}: whose it is can be rebuilt"
            assert _rows(lease.claims) == _rows(other.leases[id].claims), f"lease {id}: its claims can be rebuilt"
            assert len(lease.claims) <= self._limits.lease_attempts_max, f"lease {id}: attempts are bounded"
        for name, lock in self.locks.items():
            rebuilt = other.locks[name]
            assert list(lock.holders) == list(rebuilt.holders), f"{name}: holders lie in one order"
            assert list(lock.waiters) == list(rebuilt.waiters), f"{name}: the queue can be rebuilt"
            assert (lock.last_token, lock.delay_until_ms, lock.header, lock.permits) == (
                rebuilt.last_token,
                rebuilt.delay_until_ms,
                rebuilt.header,
                rebuilt.permits,
            ), f"{name}: the header can be rebuilt"
            self._check_lock(lock)
        assert len(self.locks) <= self._limits.locks_max, "locks are bounded"
        assert len(self.leases) <= self._limits.lock_leases_max, "leases are bounded"
        assert self.waiting.keys() == other.waiting.keys(), "all waiters are known"
        assert self._delayed.keys() == other._delayed.keys() and self._passing.keys() == other._passing.keys()
        self.graph.check(other.graph)
        for mine, fresh in (
            (self._lease_ends, other._lease_ends),
            (self._wait_ends, other._wait_ends),
            (self._delay_ends, other._delay_ends),
        ):
            assert mine.earliest() == fresh.earliest(), "no deadline is missed"
        for key, _ in view.scan(b"", b""):
            assert key[:1] in (b"l", b"h", b"w", b"s"), f"{key!r}: unknown kind of key"

    def _check_lock(self, lock: Lock) -> None:
        name, holders = lock.name, list(lock.holders.values())
        modes = {claim.mode for claim in (*holders, *lock.waiters.values())}
        assert SEMAPHORE not in modes or len(modes) == 1, f"{name}: a semaphore is nothing else"
        assert len({claim.capacity for claim in (*holders, *lock.waiters.values())}) <= 1, f"{name}: one capacity"
        tokens = [claim.token for claim in holders]
        assert tokens == sorted(tokens), f"{name}: tokens increase"
        if any(claim.mode == EXCLUSIVE for claim in holders):
            assert len(set(tokens)) == len({claim.owner for claim in holders}) == 1, f"{name}: one holds it exclusively"
        else:
            assert len(set(tokens)) == len(tokens), f"{name}: a token is one holder's"
            assert all(claim.mode == SHARED for claim in holders) or lock.permits <= holders[0].capacity, (
                f"{name}: permits"
            )
        assert len(lock.waiters) <= self._limits.lock_waiters_max, f"{name}: the queue is bounded"
        indexes = [claim.index for claim in lock.waiters.values()]
        assert indexes == sorted(set(indexes)), f"{name}: the queue is in the order of the log"
        if lock.waiters and not lock.delay_until_ms:
            first = next(iter(lock.waiters.values()))
            assert not lock.fits(first.mode, first.permits), f"{name}: nobody waits for what is free"
        assert holders or lock.waiters or lock.header, f"{name}: a lock without any record is gone"


def _cost(lock: Lock, touched: Touched) -> int:
    """Of one claim's end, or one delay's, at most: all who wait may be woken, once."""
    return 1 if lock.name in touched else 1 + len(lock.waiters)


def _first(ends: Deadlines[K, Any]) -> K:
    first = ends.earliest()
    assert first is not None
    return first[1]


def _rows(claims: dict[int, Claim]) -> dict[int, tuple[bytes, bytes]]:
    return {attempt: (claim.stored_key(), claim.encode()) for attempt, claim in claims.items()}


def tell(claim: Claim, kind: LockEvent.Kind.ValueType, reason: str, stamp: Stamp) -> None:
    """How an attempt went, under its own key."""
    event = LockEvent(
        kind=kind,
        name=claim.lock.name,
        lease=claim.lease.id,
        attempt=claim.attempt,
        token=claim.token,
        reason=reason,
    )
    stamp.changes.append((attempt_key(claim.lease.id, claim.attempt), event.SerializeToString()))


def _tell_state(lock: Lock, stamp: Stamp) -> None:
    event = LockEvent(kind=LockEvent.CHANGED, name=lock.name)
    for claim in lock.holders.values():
        event.holder.CopyFrom(holder_message(claim))
        event.token = claim.token
        break
    stamp.changes.append((b"n" + lock.name.encode(), event.SerializeToString()))


def holder_message(claim: Claim) -> LockHolder:
    """For everybody: its lease and attempt, by which it is given up, are not told."""
    return LockHolder(
        owner=claim.owner,
        metadata=claim.metadata,
        token=claim.token,
        permits=claim.permits,
        since_ms=claim.since_ms,
        delay_ms=claim.delay_ms,
    )
