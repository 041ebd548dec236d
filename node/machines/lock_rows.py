"""What a lock machine keeps of a lock, a lease and an attempt, and the records that stand for them in the view.

Laws: memory is what the records say and nothing more, so a load rebuilds it. A lock that is free, has no delay and whose last
token the log has passed leaves no record, since any later grant has a higher index. Every record opens with its format.

The view holds `l` + name -> last token and delay, only while either says something; `h` + name + NUL + lease + attempt -> one
who holds; `w` + name + NUL + index + lease + attempt -> one who waits; `s` + lease -> the lease. Names have no NUL, so the locks
lie in the order of their names.

A lease is that of the principal that began it; nobody else may renew it, end it, or give up what it holds.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from cluster.ports import ReadView
from proto.gen.lock_pb2 import EXCLUSIVE, SEMAPHORE, SHARED, LockMode

_FORMAT = 1
_HEADER = struct.Struct(">BQQ")
_LEASE = struct.Struct(">BQ")
_CLAIM = struct.Struct(">BBIIQQQQH")
_PAIR = struct.Struct(">QQ")
_TRIPLE = struct.Struct(">QQQ")
_NUMBER = struct.Struct(">Q")
_EXCLUSIVE, _SHARED, _SEMAPHORE = int(EXCLUSIVE), int(SHARED), int(SEMAPHORE)

ClaimKey = tuple[int, int]
"""(lease, attempt)."""


class Lease:
    """`claims`: what it holds and waits for here, by attempt."""

    __slots__ = ("claims", "expires_ms", "id", "principal")

    def __init__(self, id: int, expires_ms: int, principal: str) -> None:
        self.id = id
        self.expires_ms = expires_ms
        self.principal = principal
        self.claims: dict[int, Claim] = {}


class Claim:
    """One attempt at one lock. `token` 0: it waits, since `index` and until `until_ms`."""

    __slots__ = (
        "attempt",
        "capacity",
        "delay_ms",
        "index",
        "lease",
        "lock",
        "metadata",
        "mode",
        "owner",
        "permits",
        "since_ms",
        "token",
        "until_ms",
    )

    def __init__(
        self,
        lock: Lock,
        lease: Lease,
        attempt: int,
        owner: str,
        metadata: bytes,
        mode: LockMode.ValueType,
        capacity: int,
        permits: int,
    ) -> None:
        self.lock = lock
        self.lease = lease
        self.attempt = attempt
        self.owner = owner
        self.metadata = metadata
        self.mode = mode
        self.capacity = capacity
        self.permits = permits
        self.delay_ms = self.since_ms = self.until_ms = self.index = self.token = 0

    @property
    def key(self) -> ClaimKey:
        return self.lease.id, self.attempt

    def stored_key(self) -> bytes:
        name = self.lock.name.encode()
        if self.token:
            return b"h" + name + b"\0" + _PAIR.pack(self.lease.id, self.attempt)
        return b"w" + name + b"\0" + _TRIPLE.pack(self.index, self.lease.id, self.attempt)

    def encode(self) -> bytes:
        owner = self.owner.encode()
        number = self.token or self.until_ms
        head = _CLAIM.pack(
            _FORMAT,
            self.mode,
            self.capacity,
            self.permits,
            number,
            self.since_ms,
            self.index,
            self.delay_ms,
            len(owner),
        )
        return head + owner + self.metadata

    def alive(self, now_ms: int) -> bool:
        return self.lease.expires_ms > now_ms


class Lock:
    """`holders` in the order of their tokens, `waiters` in that of the log. `last_token` is 0 once the log has passed it.
    `header`: the record as the view has it."""

    __slots__ = ("delay_until_ms", "header", "holders", "last_token", "name", "permits", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.holders: dict[ClaimKey, Claim] = {}
        self.waiters: OrderedDict[ClaimKey, Claim] = OrderedDict()
        self.permits = 0  # held
        self.last_token = 0
        self.delay_until_ms = 0
        self.header: bytes | None = None

    def first(self) -> Claim | None:
        """One who holds it; if nobody does, the first who waits."""
        for claim in self.holders.values():
            return claim
        for claim in self.waiters.values():
            return claim
        return None

    def fits(self, mode: int, permits: int) -> bool:
        """Could somebody hold it in this mode beside those who do?"""
        for claim in self.holders.values():
            if mode == _SEMAPHORE:
                return self.permits + permits <= claim.capacity
            return mode == _SHARED == claim.mode
        return True

    def held_alone_by(self, owner: str, now_ms: int) -> Claim | None:
        """A holder whose lease lives, if `owner` holds it exclusively. What a lease that has ended still keeps is lent to nobody:
        its token must end with it."""
        for claim in self.holders.values():
            if claim.mode != _EXCLUSIVE or claim.owner != owner:
                return None
            if claim.alive(now_ms):
                return claim
        return None

    def admit(self, claim: Claim) -> None:
        self.holders[claim.key] = claim
        self.permits += claim.permits
        if len(self.holders) > 1 and claim.mode == _EXCLUSIVE:  # a further row of one owner, under the same token
            self.holders = dict(sorted(self.holders.items()))

    def header_wanted(self, index: int) -> bytes | None:
        """What must be kept beside the claims, as of an entry."""
        if self.last_token <= index:
            self.last_token = 0
        if not self.last_token and not self.delay_until_ms:
            return None
        return _HEADER.pack(_FORMAT, self.last_token, self.delay_until_ms)


def conflict(holder: Claim, mode: int, permits: int) -> bool:
    """Can nobody hold the lock in this mode while `holder` does, whatever others do?"""
    if holder.mode == _SEMAPHORE:
        return holder.permits + permits > holder.capacity
    return not holder.mode == _SHARED == mode


def lease_key(lease: int) -> bytes:
    return b"s" + _NUMBER.pack(lease)


def encode_lease(lease: Lease) -> bytes:
    return _LEASE.pack(_FORMAT, lease.expires_ms) + lease.principal.encode()


def attempt_key(lease: int, attempt: int) -> bytes:
    """Under which the feed tells how an attempt went."""
    return b"a" + _PAIR.pack(lease, attempt)


def read_locks(view: ReadView) -> tuple[dict[int, Lease], dict[str, Lock]]:
    """All that the view holds."""
    leases: dict[int, Lease] = {}
    for key, record in view.scan(b"s", b"t"):
        kind, expires_ms = _LEASE.unpack_from(record)
        assert kind == _FORMAT, f"lease format {kind} is unknown"
        lease = _NUMBER.unpack_from(key, 1)[0]
        leases[lease] = Lease(lease, expires_ms, record[_LEASE.size :].decode())
    locks: dict[str, Lock] = {}
    for key, record in view.scan(b"l", b"m"):
        kind, last_token, delay_until_ms = _HEADER.unpack(record)
        assert kind == _FORMAT, f"lock format {kind} is unknown"
        name = key[1:].decode()
        lock = locks[name] = Lock(name)
        lock.header, lock.last_token, lock.delay_until_ms = record, last_token, delay_until_ms
    held = [_read_claim(key, record, leases, locks) for key, record in view.scan(b"h", b"i")]
    for claim in sorted(held, key=lambda each: (each.token, each.key)):
        claim.lock.admit(claim)
    for key, record in view.scan(b"w", b"x"):
        claim = _read_claim(key, record, leases, locks)
        claim.lock.waiters[claim.key] = claim
    return leases, locks


def _read_claim(key: bytes, record: bytes, leases: dict[int, Lease], locks: dict[str, Lock]) -> Claim:
    kind, mode, capacity, permits, number, since_ms, index, delay_ms, owner_bytes = _CLAIM.unpack_from(record)
    assert kind == _FORMAT, f"claim format {kind} is unknown"
    encoded, _, ids = key[1:].partition(b"\0")
    lease_id, attempt = _PAIR.unpack(ids[-_PAIR.size :])
    name = encoded.decode()
    lock = locks.get(name)
    if lock is None:
        lock = locks[name] = Lock(name)
    lease = leases[lease_id]
    end = _CLAIM.size + owner_bytes
    owner = record[_CLAIM.size : end].decode()
    claim = Claim(lock, lease, attempt, owner, record[end:], mode, capacity, permits)
    claim.since_ms, claim.index, claim.delay_ms = since_ms, index, delay_ms
    if key[:1] == b"h":
        claim.token = number
    else:
        claim.until_ms = number
    lease.claims[attempt] = claim
    return claim
