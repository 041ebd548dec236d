"""The lock machine: who may hold a name, in which order, under which token, until when.

Laws: a lock is held by those who fit together and by nobody else; only an applied pulse ends a lease, a wait or a delay, so never
before the shard's time says so. (lease, attempt) identifies an acquire for ever: asked again while it holds or waits, it is
answered the same. A lease that has ended at the stamp can neither be renewed nor be granted anything, and is nobody's but its
principal's. After Burrows, "The Chubby
lock service" (2006): sequencers, here fencing tokens, and the lock-delay.
"""

from __future__ import annotations

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ReadView, View
from node.machines import lock_answers
from node.machines.lock_rows import Claim, Lease, Lock
from node.machines.lock_table import LockTable, tell
from node.machines.machine import Stamp
from proto.gen.entry_pb2 import Fence
from proto.gen.lock_pb2 import (
    EXCLUSIVE,
    SEMAPHORE,
    LockAcquire,
    LockAnswer,
    LockCommand,
    LockEndLease,
    LockEvent,
    LockForceRelease,
    LockMode,
    LockQuery,
    LockRelease,
    LockRenew,
    LockResult,
)

TAKEN_AWAY = "an operator took the lock away"


def event_message(index: int, key: bytes, event: bytes) -> LockEvent:
    """The message for a change read from the feed."""
    told = LockEvent.FromString(event)
    told.index = index
    return told


class LockMachine:
    name = "lock"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._table = LockTable(limits)

    def load(self, view: View) -> None:
        self._table.load(view)

    def parse(self, body: bytes) -> LockCommand:
        return LockCommand.FromString(body)

    def apply(self, command: LockCommand, stamp: Stamp, view: View) -> LockResult:
        which = command.WhichOneof("command")
        if which == "acquire":
            return self._acquire(command.acquire, stamp, view)
        if which == "release":
            return self._release(command.release, stamp, view)
        if which == "renew":
            return self._renew(command.renew, stamp, view)
        if which == "end_lease":
            return self._end_lease(command.end_lease, stamp, view)
        assert which == "force_release", f"command {which} is unknown"
        return self._force_release(command.force_release, stamp, view)

    # ---- acquire

    def _acquire(self, asked: LockAcquire, stamp: Stamp, view: View) -> LockResult:
        table, now_ms = self._table, stamp.time_ms
        expires_ms = now_ms + asked.ttl_ms
        lease = self._lease(asked.lease, stamp, may_begin=asked.new_lease)
        if lease is not None and asked.attempt in lease.claims:
            return self._ask_again(asked, lease, expires_ms, view)
        lock = table.locks.get(asked.name) or Lock(asked.name)
        _check_mode(lock, asked)
        again = lock.held_alone_by(asked.owner, now_ms) if asked.reentrant else None
        free = not lock.waiters and not lock.delay_until_ms and lock.fits(asked.mode, asked.permits or 1)
        if not free and again is None and not asked.wait_ms:
            if lease is not None:
                table.live(lease, expires_ms, view)
            return lock_answers.held_by_others(lock, now_ms)
        claim = self._claim(asked, lock, lease or Lease(asked.lease, expires_ms, stamp.principal))
        if not free and again is None:
            self._check_queue(claim, now_ms)
            table.live(claim.lease, expires_ms, view)
            table.enqueue(claim, now_ms + asked.wait_ms, stamp, view)
            return LockResult(waiting=True, waiters=len(lock.waiters) - 1)
        table.live(claim.lease, expires_ms, view)
        if again is not None:
            claim.mode = EXCLUSIVE
        table.grant(claim, again.token if again is not None else 0, stamp, view)
        table.settle(lock, stamp, view, changed=True)
        return LockResult(granted=True, token=claim.token)

    def _lease(self, id: int, stamp: Stamp, *, may_begin: bool = False) -> Lease | None:
        """The lease, which lives; None where a new one may begin."""
        lease = self._known(id, stamp)
        if lease is None and may_begin:
            return None
        if lease is None or lease.expires_ms <= stamp.time_ms:
            why = "is unknown in this shard" if lease is None else "has expired"
            raise TenfoldError(Code.UNKNOWN_LEASE, f"lease {id} {why}")
        return lease

    def _known(self, id: int, stamp: Stamp) -> Lease | None:
        """Whether it lives or not."""
        lease = self._table.leases.get(id)
        if lease is not None and lease.principal != stamp.principal:
            raise TenfoldError(Code.NOT_HOLDER, f"lease {id} was begun by another principal")
        return lease

    def _ask_again(self, asked: LockAcquire, lease: Lease, expires_ms: int, view: View) -> LockResult:
        known = lease.claims[asked.attempt]
        if known.lock.name != asked.name:
            message = f"acquire.attempt: {asked.attempt} of lease {lease.id} is about {known.lock.name!r}"
            raise TenfoldError(Code.INVALID_ARGUMENT, message)
        self._table.live(lease, expires_ms, view)
        return lock_answers.attempt(known)

    def _claim(self, asked: LockAcquire, lock: Lock, lease: Lease) -> Claim:
        """What is granted or queued next, since there is room for it; nothing is changed yet."""
        limits, table = self._limits, self._table
        if len(table.locks) >= limits.locks_max and lock.name not in table.locks:
            raise _full(f"{limits.locks_max} locks are in use in this shard")
        if len(table.leases) >= limits.lock_leases_max and lease.id not in table.leases:
            raise _full(f"{limits.lock_leases_max} leases live in this shard")
        if len(lease.claims) >= limits.lease_attempts_max:
            raise _full(f"lease {lease.id} holds and waits for {len(lease.claims)} locks in this shard")
        permits = asked.permits or 1
        claim = Claim(lock, lease, asked.attempt, asked.owner, asked.metadata, asked.mode, asked.capacity, permits)
        claim.delay_ms = asked.delay_ms
        return claim

    def _check_queue(self, claim: Claim, now_ms: int) -> None:
        lock, bound = claim.lock, self._limits.lock_waiters_max
        if len(lock.waiters) >= bound:
            raise TenfoldError(Code.TOO_MANY_WAITERS, f"{lock.name!r}: {bound} wait already")
        cycle = self._table.graph.cycle(claim, now_ms)
        if cycle:
            raise TenfoldError(Code.DEADLOCK, cycle)

    # ---- the end of a hold, of a wait, of a lease

    def _renew(self, asked: LockRenew, stamp: Stamp, view: View) -> LockResult:
        lease = self._lease(asked.lease, stamp)
        assert lease is not None
        self._table.live(lease, stamp.time_ms + asked.ttl_ms, view)
        return LockResult()

    def _release(self, asked: LockRelease, stamp: Stamp, view: View) -> LockResult:
        table = self._table
        lock, lease = table.locks.get(asked.name), self._known(asked.lease, stamp)
        claim = lease.claims.get(asked.attempt) if lease is not None else None
        if claim is not None and claim.lock is not lock:
            message = f"release.attempt: {asked.attempt} of lease {asked.lease} is about {claim.lock.name!r}"
            raise TenfoldError(Code.INVALID_ARGUMENT, message)
        result = LockResult()
        if claim is not None and claim.token and asked.reason:
            return lock_answers.attempt(claim)  # it was granted meanwhile: no deadlock, and it stays
        if claim is not None:
            assert lock is not None
            if not claim.token:
                tell(claim, LockEvent.DEADLOCK if asked.reason else LockEvent.CANCELLED, asked.reason, stamp)
            table.drop(claim, view)
            table.settle(lock, stamp, view, changed=claim.token > 0)
            result.released = True
        elif lock is not None and lock.holders and lease is not None:
            raise TenfoldError(Code.NOT_HOLDER, f"{asked.name!r} is held by {_owners(lock)}, not by this attempt")
        if asked.end_lease and lease is not None and not lease.claims:
            table.close(lease, view)
        return result

    def _end_lease(self, asked: LockEndLease, stamp: Stamp, view: View) -> LockResult:
        lease = self._known(asked.lease, stamp)
        if lease is None:
            return LockResult()
        self._table.end(lease, stamp, view, unclean=asked.unclean)
        return LockResult(released=True)

    def _force_release(self, asked: LockForceRelease, stamp: Stamp, view: View) -> LockResult:
        """Also ends a delay, unless a token is named."""
        lock = self._table.locks.get(asked.name)
        if lock is None:
            return LockResult()
        taken = [claim for claim in lock.holders.values() if asked.token in (0, claim.token)]
        if not taken and (asked.token or not lock.delay_until_ms):
            return lock_answers.held_by_others(lock, stamp.time_ms)
        for claim in taken:
            self._table.drop(claim, view)
            tell(claim, LockEvent.LOST, TAKEN_AWAY, stamp)
        if not asked.token:
            self._table.end_delay(lock)
        self._table.settle(lock, stamp, view, changed=bool(taken))
        return LockResult(released=True)

    # ---- for fences

    def check_holder(self, fence: Fence, stamp: Stamp) -> None:
        """Its token must be that of a holder whose lease lives; who releases by it must be the principal of that lease."""
        lock = self._table.locks.get(fence.name)
        held = [claim for claim in lock.holders.values() if claim.token == fence.token] if lock is not None else []
        if not any(claim.alive(stamp.time_ms) for claim in held):
            message = f"{fence.name!r}: token {fence.token} is not that of a present holder"
            raise TenfoldError(Code.STALE_TOKEN, message)
        if fence.release and any(claim.lease.principal != stamp.principal for claim in held):
            raise TenfoldError(Code.NOT_HOLDER, f"{fence.name!r} is held by another principal")

    def confirm(self, name: str, token: int, stamp: Stamp, view: View) -> None:
        """Releases what is held under the token, which is that of a holder. A lease that has nothing else here ends with it: were
        it renewed, whoever never heard of this would believe to hold for ever."""
        lock = self._table.locks[name]
        for claim in [claim for claim in lock.holders.values() if claim.token == token]:
            self._table.drop(claim, view)
            if not claim.lease.claims:
                self._table.close(claim.lease, view)
        self._table.settle(lock, stamp, view, changed=True)

    # ---- queries and time

    def query(self, request: LockQuery, view: ReadView, now_ms: int) -> LockAnswer:
        return lock_answers.answer(request, self._table, self._limits, view, now_ms)

    def pulse_due(self, view: ReadView, now_ms: int) -> bool:
        return self._table.due(now_ms)

    def pulse(self, stamp: Stamp, view: View) -> None:
        self._table.pulse(stamp, view)

    def check_invariants(self, view: ReadView) -> None:
        self._table.check_invariants(view)


def _check_mode(lock: Lock, asked: LockAcquire) -> None:
    present = lock.first()
    if present is None:
        return
    if (present.mode == SEMAPHORE) != (asked.mode == SEMAPHORE) or present.capacity != asked.capacity:
        mode = LockMode.Name(present.mode).lower()
        of = f" of {present.capacity}" if present.capacity else ""
        raise TenfoldError(Code.LOCK_MODE_DIFFERS, f"{lock.name!r} is in use as {mode}{of}")


def _full(what: str) -> TenfoldError:
    return TenfoldError(Code.LOCK_TABLE_FULL, f"{what}, which is the bound")


def _owners(lock: Lock) -> str:
    first = next(iter(lock.holders.values()))
    others = len(lock.holders) - 1
    return f"{first.owner!r}" + (f" and {others} others" if others else "")
