"""Bugs of locks: leases that end too early or not at all, tokens and fences that forget, queues that lose or overtake."""

from __future__ import annotations

import asyncio
from typing import Any

from chaos.bugs.patch import Bug, Patch
from cluster.errors import Code, TenfoldError
from node.machines.fences import Fences
from node.machines.lock import LockMachine
from node.machines.lock_graph import WaitGraph
from node.machines.lock_rows import Claim
from node.machines.lock_table import LockTable
from node.machines.machine import Stamp
from node.shard_clock import ShardClock
from node.storage import snapshot
from proto.gen.lock_pb2 import LockRelease, LockResult

START = ShardClock.start
RELEASE = LockMachine._release
RENEW = LockMachine._renew
PULSE = LockTable.pulse
GRANT = LockTable.grant
CHECK_HOLDER = LockMachine.check_holder
WRITE_HEADER = LockTable._write_header
LOAD = LockTable.load
ENQUEUE = LockTable.enqueue
FENCES_LOAD = Fences.load
READ_PAIRS = snapshot.read_pairs
HEADER = b"lock/l"
"""Where the view keeps the last token of a lock."""


def _fresh_clock(clock: ShardClock, time_ms: int, now: float) -> None:
    """A new leader counts from its own start what its predecessor had counted already."""
    START(clock, time_ms + 700, now)


def _count_tokens(table: LockTable, claim: Claim, token: int, stamp: Stamp, view: Any) -> None:
    GRANT(table, claim, token or _next(claim), stamp, view)


def _next(claim: Claim) -> int:
    claim.lock.last_token += 1
    return claim.lock.last_token


def _keep_header(table: LockTable, lock: Any, index: int, view: Any) -> None:
    """Every lock has one, since its tokens do not follow the log."""
    WRITE_HEADER(table, lock, min(index, lock.last_token - 1), view)


def _without_headers(data: bytes) -> Any:
    return ((key, value) for key, value in READ_PAIRS(data) if not key.startswith(HEADER))


def _lease_by_lease(table: LockTable, stamp: Stamp, view: Any) -> None:
    """Each lease that is due ends by itself, and what it held is granted before the next one is looked at."""
    now_ms = stamp.time_ms
    for lease in [lease for lease in table.leases.values() if lease.expires_ms <= now_ms]:
        table.end(lease, stamp, view, unclean=False)
    PULSE(table, stamp, view)


def _release_any(machine: LockMachine, asked: LockRelease, stamp: Stamp, view: Any) -> LockResult:
    """Of a lock that is held by somebody else: then that one."""
    lock, lease = machine._table.locks.get(asked.name), machine._table.leases.get(asked.lease)
    mine = lease is not None and asked.attempt in lease.claims
    if not mine and lock is not None and lock.holders:
        holder = next(iter(lock.holders.values()))
        asked = LockRelease(name=asked.name, lease=holder.lease.id, attempt=holder.attempt)
    return RELEASE(machine, asked, stamp, view)


def _load_holders(table: LockTable, view: Any) -> None:
    """Who waits is known to the leader alone."""
    LOAD(table, view)
    for claim in list(table.waiting.values()):
        table.drop(claim, view)


def _renew_anything(machine: LockMachine, asked: Any, stamp: Stamp, view: Any) -> LockResult:
    if asked.lease not in machine._table.leases:
        return LockResult()
    return RENEW(machine, asked, stamp, view)


def _forget_fences(fences: Fences, view: Any) -> None:
    """Tokens that were shown are remembered by the process."""
    FENCES_LOAD(fences, view)
    fences._begin({})


def _any_token(machine: LockMachine, fence: Any, stamp: Stamp) -> None:
    """Whoever held the lock once writes in its shard as if it still did."""


def _refuse_holders(machine: LockMachine, fence: Any, stamp: Stamp) -> None:
    """A token is good up to half a second after the grant."""
    CHECK_HOLDER(machine, fence, stamp)
    held = machine._table.locks[fence.name].holders.values()
    if all(claim.since_ms + 500 < stamp.time_ms for claim in held):
        raise TenfoldError(Code.STALE_TOKEN, f"{fence.name!r}: token {fence.token} is old")


def _any_cycle(graph: WaitGraph, asking: Claim, now_ms: int) -> str:
    """Who holds anything must not wait."""
    holder = next((each for each in asking.lock.holders.values() if each.owner != asking.owner), None)
    if holder is None or asking.owner not in graph._holds:
        return ""
    name, owner = asking.lock.name, asking.owner
    return f"{name}: {owner} -> {holder.owner}, {name}: {holder.owner} -> {owner}"


def _push_in(table: LockTable, claim: Claim, until_ms: int, stamp: Stamp, view: Any) -> None:
    """The last to come is the first to be served."""
    ENQUEUE(table, claim, until_ms, stamp, view)
    claim.lock.waiters.move_to_end(claim.key, last=False)


def _own_pulse(table: LockTable, stamp: Stamp, view: Any) -> None:
    own_ms = int(asyncio.get_running_loop().time() * 1000) % 300
    later = Stamp(stamp.index, stamp.term, stamp.time_ms + own_ms, stamp.wall_ms)
    later.changes = stamp.changes
    PULSE(table, later, view)


LOCK_BUGS = tuple(
    bug._replace(workload="lock")
    for bug in (
        Bug(
            "leases-end-early-after-failover",
            "a new leader's shard time runs ahead",
            (Patch(ShardClock, "start", _fresh_clock),),
        ),
        Bug(
            "tokens-begin-anew-after-a-snapshot",
            "tokens are counted, and the count is not in the snapshot",
            (
                Patch(LockTable, "grant", _count_tokens),
                Patch(LockTable, "_write_header", _keep_header),
                Patch(snapshot, "read_pairs", _without_headers),
            ),
        ),
        Bug(
            "tokens-begin-anew",
            "tokens are counted, and the count goes with the lock's record",
            (Patch(LockTable, "grant", _count_tokens),),
        ),
        Bug(
            "grants-to-a-dead-lease",
            "a grant does not look whether the waiter's lease lives",
            (Patch(Claim, "alive", lambda *_: True), Patch(LockTable, "pulse", _lease_by_lease)),
        ),
        Bug(
            "releases-anothers",
            "a release of somebody else's lock frees it",
            (Patch(LockMachine, "_release", _release_any),),
        ),
        Bug(
            "loses-waiters",
            "who waits is forgotten when a replica loads its state",
            (Patch(LockTable, "load", _load_holders),),
        ),
        Bug(
            "renews-the-dead",
            "a lease that has ended is renewed as if it lived",
            (Patch(LockMachine, "_renew", _renew_anything),),
        ),
        Bug(
            "fences-forget",
            "the highest token shown is not read back from the state",
            (Patch(Fences, "load", _forget_fences),),
        ),
        Bug(
            "fences-at-home-take-any",
            "in its own shard a token need not be that of a present holder",
            (Patch(LockMachine, "check_holder", _any_token),),
        ),
        Bug(
            "fences-at-home-refuse-holders",
            "in its own shard the token of a holder is refused after a while",
            (Patch(LockMachine, "check_holder", _refuse_holders),),
        ),
        Bug(
            "deadlocks-without-a-cycle",
            "who holds something is told of a deadlock whenever it would wait",
            (Patch(WaitGraph, "cycle", _any_cycle),),
        ),
        Bug(
            "last-come-first-served",
            "a new waiter stands before the others",
            (Patch(LockTable, "enqueue", _push_in),),
        ),
        Bug(
            "leases-end-by-own-clock",
            "a pulse ends leases by the time of the replica that applies it",
            (Patch(LockTable, "pulse", _own_pulse),),
        ),
    )
)
