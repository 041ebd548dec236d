"""What a lock machine answers: how an attempt stands, one lock, a page of locks, who waits for whom.

Laws: who holds or waits is told by owner and token; lease and attempt, by which it is given up, only to who names them, and in
the edges of a wait. Nothing is hidden by time; what remains of a lease is said by the shard time of the last applied entry. An answer is bounded:
a page in locks and bytes, a lock in the holders and waiters that are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice

from cluster.limits import Limits
from cluster.ports import ReadView
from node.machines.lock_graph import blockers
from node.machines.lock_rows import Claim, Lock
from node.machines.lock_table import LockTable, holder_message
from proto.gen.lock_pb2 import (
    LockAnswer,
    LockCheck,
    LockEdge,
    LockHolder,
    LockList,
    LockQuery,
    LockResult,
    LockState,
    LockWaiter,
)

_CLAIM_OVERHEAD_BYTES = 100  # what the numbers and tags of a holder or waiter take in an answer, at most


def answer(request: LockQuery, table: LockTable, limits: Limits, view: ReadView, now_ms: int) -> LockAnswer:
    which = request.WhichOneof("query")
    if which == "get":
        lock = table.locks.get(request.get) or Lock(request.get)
        return LockAnswer(locks=[_state(lock, _Room(limits), now_ms)])
    if which == "check":
        return LockAnswer(attempt=_check(request.check, table, now_ms))
    if which == "edges":
        return _edges(request.edges.owners, table, limits, now_ms)
    return _list(request.list, table, limits, view, now_ms)


def attempt(claim: Claim) -> LockResult:
    """Of one that holds or waits."""
    if claim.token:
        return LockResult(granted=True, token=claim.token)
    before = sum(1 for each in claim.lock.waiters.values() if each.index < claim.index)
    return LockResult(waiting=True, waiters=before)


def held_by_others(lock: Lock, now_ms: int) -> LockResult:
    result = LockResult(waiters=len(lock.waiters))
    for claim in lock.holders.values():
        result.holder.CopyFrom(holder(claim, now_ms))
        break
    return result


def _check(asked: LockCheck, table: LockTable, now_ms: int) -> LockResult:
    lease = table.leases.get(asked.lease)
    claim = lease.claims.get(asked.attempt) if lease is not None else None
    if claim is not None and claim.lock.name == asked.name:
        return attempt(claim)
    return held_by_others(table.locks.get(asked.name) or Lock(asked.name), now_ms)


# ---- locks


class _Room:
    """What an answer may still hold."""

    def __init__(self, limits: Limits) -> None:
        self.claims = limits.lock_list_max
        self.bytes = limits.scan_bytes_max

    def take(self, claims: Iterable[Claim]) -> Iterator[Claim]:
        """As many as there is room for; those of one lock are bounded by themselves, too."""
        for claim in islice(claims, self.claims):
            if self.bytes < 0:
                return
            self.bytes -= len(claim.owner) + len(claim.metadata) + _CLAIM_OVERHEAD_BYTES
            yield claim


def _list(asked: LockList, table: LockTable, limits: Limits, view: ReadView, now_ms: int) -> LockAnswer:
    bound = min(asked.limit or limits.lock_list_max, limits.lock_list_max)
    room = _Room(limits)
    found = LockAnswer()
    for name in _names(max(asked.start, asked.prefix), view):
        if not name.startswith(asked.prefix):
            break
        if len(found.locks) == bound or (room.bytes < 0 and found.locks):
            found.more, found.next = True, name
            break
        room.bytes -= len(name)
        lock = table.locks[name]
        if lock.first() is not None or lock.delay_until_ms:
            found.locks.append(_state(lock, room, now_ms))
    return found


def _names(start: str, view: ReadView) -> Iterator[str]:
    """Of all locks from `start` on, in order, from the records in the view."""
    low = start.encode()
    scans = (view.scan(kind + low, end) for kind, end in ((b"h", b"i"), (b"l", b"m"), (b"w", b"x")))
    last = None
    for name in merge(*((key[1:].partition(b"\0")[0] for key, _ in scan) for scan in scans)):
        if name != last:
            last = name
            yield name.decode()


def _state(lock: Lock, room: _Room, now_ms: int) -> LockState:
    first = lock.first()
    state = LockState(
        name=lock.name,
        delay_remaining_ms=max(0, lock.delay_until_ms - now_ms),
        waiters_count=len(lock.waiters),
        holders_count=len(lock.holders),
    )
    if first is not None:
        state.mode, state.capacity = first.mode, first.capacity
    state.holders.extend(holder(claim, now_ms) for claim in room.take(lock.holders.values()))
    state.waiters.extend(_waiter(claim, now_ms) for claim in room.take(lock.waiters.values()))
    return state


def holder(claim: Claim, now_ms: int) -> LockHolder:
    message = holder_message(claim)
    message.remaining_ms = max(0, claim.lease.expires_ms - now_ms)
    return message


def _waiter(claim: Claim, now_ms: int) -> LockWaiter:
    return LockWaiter(
        owner=claim.owner,
        metadata=claim.metadata,
        mode=claim.mode,
        permits=claim.permits,
        since_ms=claim.since_ms,
        until_ms=claim.until_ms,
        index=claim.index,
        delay_ms=claim.delay_ms,
        waited_ms=max(0, now_ms - claim.since_ms),
    )


# ---- edges


def _edges(owners: Iterable[str], table: LockTable, limits: Limits, now_ms: int) -> LockAnswer:
    """An answer that is cut says so; a cycle through what is missing is not seen."""
    found = LockAnswer()
    room = limits.lock_list_max
    for owner in sorted(set(owners)):
        for claim in table.graph.waits(owner):
            edge = LockEdge(
                name=claim.lock.name,
                waiter=owner,
                lease=claim.lease.id,
                attempt=claim.attempt,
                index=claim.index,
                since_ms=claim.since_ms,
            )
            for each in blockers(claim, now_ms):
                if room == 0:
                    found.more = True
                    break
                room -= 1
                edge.holders.append(each.owner)
                edge.tokens.append(each.token)
            if edge.holders:
                found.edges.append(edge)
    return found
