"""Who waits for whom in one shard: cycles of owners that wait for each other (Coffman et al. 1971; Holt 1972).

Laws: an edge is a necessity: the waiter cannot be served before that holder gives way, so a cycle is a deadlock unless somebody
in it gives up. A queue is served in order, so who waits needs what those before it need. What a semaphore's waiter could get from
any of several holders is no edge. Only one who joins a queue can close a cycle, and the cycle goes through it.

An owner acts one step at a time: what it holds, it holds while it waits, so the permits of a semaphore that its waiter has are
none of those it could get. That it asks for what it holds itself is no cycle, whoever stands in the queue between: that hold may be
one it has given up and that has not ended yet, and then it is served.
"""

from __future__ import annotations

from collections.abc import Iterator

from node.machines.lock_rows import Claim, ClaimKey, conflict
from proto.gen.lock_pb2 import EXCLUSIVE, SEMAPHORE

_EXCLUSIVE, _SEMAPHORE = int(EXCLUSIVE), int(SEMAPHORE)


class WaitGraph:
    def __init__(self) -> None:
        self._holds: dict[str, int] = {}
        self._waits: dict[str, dict[ClaimKey, Claim]] = {}

    def held(self, owner: str, change: int) -> None:
        count = self._holds.get(owner, 0) + change
        if count:
            self._holds[owner] = count
        else:
            del self._holds[owner]

    def begin(self, claim: Claim) -> None:
        self._waits.setdefault(claim.owner, {})[claim.key] = claim

    def end(self, claim: Claim) -> None:
        waits = self._waits[claim.owner]
        del waits[claim.key]
        if not waits:
            del self._waits[claim.owner]

    def waits(self, owner: str) -> list[Claim]:
        found = self._waits.get(owner)
        return sorted(found.values(), key=lambda each: (each.index, each.lock.name)) if found else []

    def cycle(self, asking: Claim, now_ms: int) -> str:
        """The cycle that `asking` would close at the end of its queue, as "a: w1 -> w2, b: w2 -> w1"; empty if none. Whose
        lease has expired, or whose wait is over, waits no more."""
        owner = asking.owner
        if owner not in self._holds:
            return ""  # nobody can wait for it
        came: dict[str, Claim] = {}  # which attempt waits for this owner
        ahead = [asking]
        while ahead:
            claim = ahead.pop()
            for holder in blockers(claim, now_ms):
                if holder.owner == owner:
                    return _told(claim, owner, came)
                if holder.owner not in came:
                    came[holder.owner] = claim
                    ahead.extend(each for each in self.waits(holder.owner) if waits_at(each, now_ms))
        return ""

    def check(self, other: WaitGraph) -> None:
        assert self._holds == other._holds, "owners' holds are counted"
        mine = {owner: set(waits) for owner, waits in self._waits.items()}
        assert mine == {owner: set(waits) for owner, waits in other._waits.items()}, "owners' waits are known"


def waits_at(claim: Claim, now_ms: int) -> bool:
    return claim.until_ms > now_ms and claim.alive(now_ms)


def blockers(claim: Claim, now_ms: int) -> Iterator[Claim]:
    """The holders that must give way before `claim`, which waits or would (with index 0: at the end), holds its lock."""
    holders = [holder for holder in claim.lock.holders.values() if holder.alive(now_ms)]
    if claim.mode == _SEMAPHORE:
        yield from _semaphore_blockers(claim, holders, now_ms)
        return
    mode = claim.mode
    if mode != _EXCLUSIVE and any(waiter.mode == EXCLUSIVE for waiter in _before(claim, now_ms)):
        mode = EXCLUSIVE  # as the strictest of those before it, and of itself
    for holder in holders:
        if holder.owner != claim.owner and conflict(holder, mode, 1):
            yield holder


def _before(claim: Claim, now_ms: int) -> Iterator[Claim]:
    for waiter in claim.lock.waiters.values():
        if claim.index and waiter.index >= claim.index:
            return
        if waits_at(waiter, now_ms):
            yield waiter


def _semaphore_blockers(claim: Claim, holders: list[Claim], now_ms: int) -> Iterator[Claim]:
    """It needs as many as anybody up to its place asks for, beside what the owner of that one has."""
    has: dict[str, int] = {}
    for holder in holders:
        has[holder.owner] = has.get(holder.owner, 0) + holder.permits
    needs: dict[str, int] = {}  # by owner, the most that one of its attempts would hold in the end
    permits = 0
    for each in (claim, *_before(claim, now_ms)):
        permits = max(permits, each.permits)
        total = each.permits + has.get(each.owner, 0)
        if total <= each.capacity:  # else it waits for itself
            needs[each.owner] = max(needs.get(each.owner, 0), total)
    (first, most), (_, next_most) = sorted([*needs.items(), ("", 0), ("", 0)], key=lambda item: (-item[1], item[0]))[:2]
    for holder in holders:
        if holder.owner != claim.owner:
            wanted = max(permits, most if holder.owner != first else next_most)
            if conflict(holder, SEMAPHORE, wanted):
                yield holder


def _told(last: Claim, owner: str, came: dict[str, Claim]) -> str:
    steps = [f"{last.lock.name}: {last.owner} -> {owner}"]
    at = last.owner
    while at != owner:
        claim = came[at]
        steps.append(f"{claim.lock.name}: {claim.owner} -> {at}")
        at = claim.owner
    return ", ".join(reversed(steps))
