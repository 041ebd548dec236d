"""Who waits for whom in one shard: cycles of owners that wait for each other (Coffman et al. 1971; Holt 1972).

Laws: an edge is a necessity: the waiter cannot be served before that holder gives way, so a cycle is a deadlock unless somebody
in it gives up. A queue is served in order, so who waits needs what those before it need. What a semaphore's waiter could get from
any of several holders is no edge. Only one who joins a queue can close a cycle, and the cycle goes through it.

An owner acts one step at a time: what it holds, it holds while it waits. That it asks for what it holds itself is no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator

from node.machines.lock_rows import Claim, ClaimKey, conflict
from proto.gen.lock_pb2 import EXCLUSIVE

_EXCLUSIVE = int(EXCLUSIVE)


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
        owner, name = asking.owner, asking.lock.name
        if owner not in self._holds:
            return ""  # nobody can wait for it
        for waiter in reversed(asking.lock.waiters.values()):
            if waiter.owner != owner and waits_at(waiter, now_ms):
                if any(holder.owner == owner for holder in blockers(waiter, now_ms)):
                    return f"{name}: {owner} -> {waiter.owner}, {name}: {waiter.owner} -> {owner}"
                break  # those before it need no more than it does
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
    mode, permits = claim.mode, claim.permits
    if mode != _EXCLUSIVE:
        for waiter in claim.lock.waiters.values():
            if claim.index and waiter.index >= claim.index:
                break
            if waits_at(waiter, now_ms):  # the strictest of those before it, and of itself
                mode, permits = min(mode, waiter.mode), max(permits, waiter.permits)
                if mode == _EXCLUSIVE:
                    break
    for holder in claim.lock.holders.values():
        if holder.owner != claim.owner and holder.alive(now_ms) and conflict(holder, mode, permits):
            yield holder


def _told(last: Claim, owner: str, came: dict[str, Claim]) -> str:
    steps = [f"{last.lock.name}: {last.owner} -> {owner}"]
    at = last.owner
    while at != owner:
        claim = came[at]
        steps.append(f"{claim.lock.name}: {claim.owner} -> {at}")
        at = claim.owner
    return ", ".join(reversed(steps))
