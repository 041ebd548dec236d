"""Deadlocks over shards: probes along the edges of who waits for whom, confirmed by a second round (Chandy, Misra and Haas 1983).

Law: a cycle is believed only when two rounds, one begun after the other had ended, saw every edge of it: the same attempts
waiting for the same tokens. A wait that has ended and a token that was given up never come back, so between the rounds all of them
were there at one moment. The youngest attempt of the cycle gives up, in its own shard's log; all find the same one, so the
others wait on. Cycles inside one shard are refused by the shard itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from client.lock_calls import LockCalls, edges_of
from client.lock_lease import Lease
from client.lock_waits import Expected, Waits
from cluster.errors import TenfoldError
from proto.gen.lock_pb2 import LockEdge, LockRelease

BACKOFF_MAX = 8


class Step(NamedTuple):
    """`waiter` waits for `holder`, in a shard."""

    name: str
    waiter: str
    lease: int
    attempt: int
    holder: str
    token: int
    age: tuple[int, int, int]
    """since_ms, shard, log index: orders the attempts of all shards in some way that is the same for everybody."""


class Probes:
    """Of one lease."""

    def __init__(self, calls: LockCalls, lease: Lease, waits: Waits) -> None:
        self._calls, self._around, self._lease, self._waits = calls, calls.around, lease, waits
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """While anything waits."""
        if self._task is None or self._task.done():
            self._task = self._around.tasks(self._run(), f"lease {self._lease.id:x}: deadlock probes")

    async def _run(self) -> None:
        every_s = self._around.limits.deadlock_probe_ms / 1000
        slower = 1
        while self._waits.waiting:
            await asyncio.sleep(every_s * slower * (0.75 + self._around.random.random() / 2))
            now = self._around.clock.monotonic()
            old = [each for each in self._waits.waiting if now - each.since >= every_s / 2]
            slower = min(BACKOFF_MAX, slower * 2) if old else 1
            for waiting in old:
                try:
                    await self._probe(waiting)
                except TenfoldError:
                    break  # a shard that does not answer: later

    async def _probe(self, waiting: Expected) -> None:
        cycle = _cycle(await self._reached([waiting.owner]), waiting, self._lease.id)
        if not cycle:
            return
        again = await self._edges({step.waiter for step in cycle})
        if not set(cycle) <= set(again) or waiting.ended.done():
            return
        youngest = max(cycle, key=lambda step: step.age)
        if (youngest.lease, youngest.attempt) == (self._lease.id, waiting.attempt):
            await self._give_up(waiting, ", ".join(f"{each.name}: {each.waiter} -> {each.holder}" for each in cycle))

    async def _give_up(self, waiting: Expected, reason: str) -> None:
        """The shard ends the wait and tells why, or grants it first and leaves it."""
        asked = LockRelease(name=waiting.name, lease=self._lease.id, attempt=waiting.attempt, reason=reason)
        await self._calls.release(waiting.shard, asked, None)

    async def _reached(self, owners: list[str]) -> list[Step]:
        """All edges of these owners and of those for whom they wait, and so on."""
        found: list[Step] = []
        seen: dict[str, None] = dict.fromkeys(owners)
        ahead = owners
        while ahead and len(seen) <= self._around.limits.lock_list_max:
            edges = await self._edges(ahead)
            found += edges
            ahead = list(dict.fromkeys(step.holder for step in edges if step.holder not in seen))
            seen.update(dict.fromkeys(ahead))
        return found

    async def _edges(self, owners: Iterable[str]) -> list[Step]:
        """Of these owners, in all shards."""
        found: list[Step] = []
        wanted = sorted(owners)[: self._around.limits.lock_list_max]
        ahead = [(shard, wanted) for shard in range(1, self._around.router.shards + 1)]
        while ahead:
            asked = [(shard, some, self._calls.begin_edges(shard, some)) for shard, some in ahead]
            ahead = []
            for shard, some, answer in asked:
                edges, cut = edges_of(await answer)
                if cut and len(some) > 1:  # too much for one answer
                    half = len(some) // 2
                    ahead += [(shard, some[:half]), (shard, some[half:])]
                else:
                    found += [step for edge in edges for step in _steps(edge, shard)]
        return found


def _steps(edge: LockEdge, shard: int) -> Iterable[Step]:
    for holder, token in zip(edge.holders, edge.tokens, strict=True):
        age = edge.since_ms, shard, edge.index
        yield Step(edge.name, edge.waiter, edge.lease, edge.attempt, holder, token, age)


def _cycle(steps: list[Step], waiting: Expected, lease: int) -> list[Step]:
    """A way from the owner of `waiting`, beginning with that attempt, back to it; the shortest."""
    own = [step for step in steps if (step.lease, step.attempt) == (lease, waiting.attempt)]
    came: dict[str, Step] = {}
    ahead = list(own)
    while ahead:
        further: list[Step] = []
        for step in ahead:
            if step.holder == waiting.owner:
                return _way(step, came, waiting.owner)
            if step.holder not in came:
                came[step.holder] = step
                further += [each for each in steps if each.waiter == step.holder]
        ahead = further
    return []


def _way(last: Step, came: dict[str, Step], owner: str) -> list[Step]:
    way = [last]
    while way[-1].waiter != owner:
        way.append(came[way[-1].waiter])
    return way[::-1]
