"""The workload of locks: few contended names, many short leases, and holders that misbehave on purpose.

Per shard a few lanes, each with one active name: exclusive ones, one whose holders are shared or exclusive, a semaphore. A client
takes turns: it draws a lease, takes one name or a group over shards, writes to the lock's fenced registers while it believes to
hold, and then releases, ends its lease, or forgets. Who forgets may go on as a zombie: it writes under its old token, renews and releases
what is no longer its. Some locks are taken twice, some are given up by a write that confirms, some are closed for a while after an unclean loss. Now and then
somebody releases another's lock, asks twice, or takes names in the wrong order, and an operator takes a lock away.

The register of a name lies in its shard by their hash tag, and another one somewhere else. Without `fencing` tokens are on
record only: then double writes must show. The same seed draws the same turns; the rate is bounded.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chaos.history import EventType, Recorder
from chaos.workloads.lock_calls import Ask, Calls, Granted, LeaseView, Line, Locks
from cluster.ring.ring import shard_of

FINAL_ATTEMPTS = 3
READERS = 8
REENTRANT_ATTEMPT = 500
"""Added to the attempt of a lock that its holder takes once more."""
FOREIGN_ATTEMPT = 1000
"""Of a release by somebody who never asked."""


@dataclass(frozen=True, slots=True)
class LockOptions:
    lanes: int = 3  # names at a time in each shard
    clients_per_lane: int = 4
    turns_per_name: int = 60
    rotate_s: float = 0.0  # not 0: names go by the time since the start of the history instead
    turns_per_s: float = 30.0  # of all clients together, at most
    ttl_ms: tuple[int, int] = (100, 1500)
    wait_ms: tuple[int, int] = (50, 3000)
    hold_s: float = 0.15  # at most, between two writes
    capacity: int = 3
    group_percent: int = 15
    forget_percent: int = 30
    zombie_percent: int = 60  # of those who forget
    delay_percent: int = 20  # of the attempts at names that are always exclusive
    delay_ms: tuple[int, int] = (20, 400)
    confirm_percent: int = 15  # of those who give up one lock
    force_percent: int = 2  # of the turns, by an operator beforehand
    deadline_s: float = 4.0
    fencing: bool = True
    first_process: int = 0  # of the history
    name: str = ""  # of this part of the load, which draws and owns by it


class Name(NamedTuple):
    """A lock and its registers: (key, shard) of each."""

    lock: str
    shard: int
    kind: str
    registers: tuple[tuple[str, int], ...]


class Lane:
    """The active name of one place in a shard: another one after so many turns, or by the time, which several processes agree on."""

    def __init__(self, shard: int, names: Iterator[Name], options: LockOptions, now_ns: Callable[[], int]) -> None:
        self.shard = shard
        self.used: list[Name] = []
        self._names, self._now_ns = names, now_ns
        self._turns_per_name, self._rotate_s = options.turns_per_name, options.rotate_s
        self._turns = 0

    def take(self) -> Name:
        """The name of the next turn."""
        number = int(self._now_ns() / 1e9 / self._rotate_s) if self._rotate_s else self._turns // self._turns_per_name
        self._turns += 1
        while len(self.used) <= number:
            self.used.append(next(self._names))
        return self.used[number]


def names_in(shard: int, shards: int, prefix: str, lane: int) -> Iterator[Name]:
    """Names that lie in `shard`. Those of the third lane are shared, or semaphores."""
    number = 0
    while True:
        number += 1
        tag = f"{prefix}/{lane}.{number}"
        lock, near, far = f"{{{tag}}}/lock", f"{{{tag}}}/near", f"{tag}/far"
        if shard_of(lock.encode(), shards) != shard:
            continue
        kind = "exclusive" if lane % 3 != 2 else "shared" if number % 2 else "semaphore"
        yield Name(lock, shard, kind, ((near, shard), (far, shard_of(far.encode(), shards))))


@dataclass(slots=True)
class Turn:
    """`got` are the attempts that were granted, with their tokens. Once it is `over` its lease is renewed no more."""

    view: LeaseView
    over: asyncio.Event = field(default_factory=asyncio.Event)
    asks: list[Ask] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    got: list[tuple[Ask, Name, int]] = field(default_factory=list)


async def happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits so long, or until the event has happened: then True."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return event.is_set()
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class LockWorkload:
    """Runs until `stop`; then `read_back` reads every register once more. `stores` are shared among the clients."""

    def __init__(
        self, recorder: Recorder, stores: Sequence[Locks], shards: int, seed: int, options: LockOptions = LockOptions()
    ) -> None:
        assert options.lanes >= 1 and options.clients_per_lane >= 1 and options.turns_per_s > 0
        self.calls = Calls(recorder, options.deadline_s, options.first_process)
        self.options = options
        self.acquisitions = 0
        self._stores, self._seed = stores, seed
        prefix = f"chaos/{seed}"
        self._lanes = [
            Lane(shard, names_in(shard, shards, prefix, lane), options, recorder.now_ns)
            for shard in range(1, shards + 1)
            for lane in range(options.lanes)
        ]
        self._stopped = asyncio.Event()

    def take_all(self) -> None:
        """Counts every name as used whose time has come."""
        for lane in self._lanes:
            lane.take()

    @property
    def names(self) -> list[Name]:
        """All that were used so far."""
        return [name for lane in self._lanes for name in lane.used]

    @property
    def keys(self) -> list[tuple[int, str]]:
        """(shard, key) of the registers of all names."""
        return [(shard, key) for name in self.names for key, shard in name.registers]

    @property
    def answers(self) -> dict[EventType, int]:
        return self.calls.answers

    @property
    def operations(self) -> int:
        """Completed so far."""
        return sum(self.calls.answers.values())

    def stop(self) -> None:
        """No turn is begun after this."""
        self._stopped.set()

    async def run(self) -> None:
        """Returns when `stop` was called and every turn has ended."""
        options = self.options
        clients = [(lane, number) for number in range(options.clients_per_lane) for lane in self._lanes]
        pause_s = len(clients) / options.turns_per_s
        tasks = [
            asyncio.create_task(_Client(self, lane, at, self._stores[at % len(self._stores)], self._seed).run(pause_s))
            for at, (lane, _) in enumerate(clients)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            self.stop()
            for task in tasks:
                task.cancel()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    async def stopped_within(self, seconds: float) -> bool:
        """Waits so long, or until `stop` was called: then True."""
        return await happens_within(self._stopped, seconds)

    def any_lane(self, chance: random.Random) -> Lane:
        return chance.choice(self._lanes)

    async def read_back(self) -> int:
        """Reads every register, each until it answers or has failed a few times; how many never answered."""
        left = iter(self.keys)
        unread = await asyncio.gather(
            *(self._reader(left, self._stores[at % len(self._stores)]) for at in range(READERS))
        )
        return sum(unread)

    async def _reader(self, left: Iterator[tuple[int, str]], store: Locks) -> int:
        unread, line = 0, Line(self.calls)
        for shard, key in left:
            for _ in range(FINAL_ATTEMPTS):
                if await self.calls.get(line, store, key, shard) == "ok":
                    break
            else:
                unread += 1
        return unread


class _Client:
    """One of them, at home in one lane, with a turn at a time."""

    def __init__(self, load: LockWorkload, lane: Lane, number: int, store: Locks, seed: int) -> None:
        self._load, self._lane, self._store = load, lane, store
        self._calls, self._options = load.calls, load.options
        self._name = f"{load.options.name}{number}"
        self._chance = random.Random(f"{seed}/lock/{self._name}")
        self._line = Line(load.calls)
        self._writes = 0

    async def run(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._chance.uniform(0, pause_s)
        while not await self._load.stopped_within(due - loop.time()):
            await self._turn()
            due = max(due + pause_s * self._chance.uniform(0.5, 1.5), loop.time())

    async def _turn(self) -> None:
        chance, turn = self._chance, self._draw()
        if chance.random() < 0.05:
            await self._release_anothers(turn)
        if chance.randrange(100) < self._options.force_percent:
            await self._calls.force(self._line, self._store, turn.names[0].lock, turn.names[0].shard)
        keeping = asyncio.create_task(self._keep_alive(turn), name="keep-alive")
        try:
            if await self._take_all(turn):
                await self._hold(turn)
            turn.over.set()
            forgets = chance.randrange(100) < self._options.forget_percent
            if not forgets:
                await self._give_up(turn)
            await keeping  # a renewal under way is seen to its end, so that its outcome is known
        finally:
            keeping.cancel()
        if forgets and turn.got and chance.randrange(100) < self._options.zombie_percent:
            await self._haunt(turn)

    def _draw(self) -> Turn:
        chance, options = self._chance, self._options
        low, high = options.ttl_ms
        ttl_ms = round(low * (high / low) ** chance.random())
        view = LeaseView(chance.getrandbits(63) | 1, ttl_ms)
        turn = Turn(view)
        names = {name.lock: name for name in [self._lane.take()]}
        if chance.randrange(100) < options.group_percent:
            for _ in range(chance.randint(1, 3)):
                name = self._load.any_lane(chance).take()
                names[name.lock] = name
        ordered = sorted(names.values(), key=lambda name: (name.shard, name.lock))
        if chance.random() < 0.3:  # against the law of groups: here deadlocks come from
            chance.shuffle(ordered)
        for number, name in enumerate(ordered, 1):
            first = all(ask.shard != name.shard for ask in turn.asks)
            wait_ms = 0 if chance.random() < 0.2 else chance.randint(*options.wait_ms)
            mode, capacity, permits = self._mode(name)
            delayed = mode == name.kind == "exclusive" and chance.randrange(100) < options.delay_percent
            delay_ms = chance.randint(*options.delay_ms) if delayed else 0
            turn.names.append(name)
            turn.asks.append(
                Ask(
                    name.lock, name.shard, view.lease, number, ttl_ms, wait_ms, mode, capacity, permits, first, delay_ms
                )
            )
        return turn

    def _mode(self, name: Name) -> tuple[str, int, int]:
        if name.kind == "semaphore":
            return "semaphore", self._options.capacity, self._chance.choice((1, 1, 1, 2))
        if name.kind == "shared" and self._chance.random() < 0.7:
            return "shared", 0, 0
        return "exclusive", 0, 0

    async def _take_all(self, turn: Turn) -> bool:
        for ask, name in zip(turn.asks, turn.names, strict=True):
            granted = await self._calls.acquire(self._line, self._store, ask, turn.view)
            if not isinstance(granted, Granted):
                if granted is None:  # it may hold after all
                    await self._calls.release(self._line, self._store, ask)
                return False
            turn.got.append((ask, name, granted.token))
            self._load.acquisitions += 1
        return True

    async def _keep_alive(self, turn: Turn) -> None:
        """Renews the lease in every shard where it is known, three times in its ttl, until it is lost or the turn is over."""
        view = turn.view
        lines: dict[int, Line] = {}
        while not view.lost and not await happens_within(turn.over, view.ttl_ms / 3000):
            for shard in list(view.until_ns):
                line = lines.setdefault(shard, Line(self._calls))
                if await self._calls.renew(line, self._store, view, shard) == "UNKNOWN_LEASE":
                    view.lost = True

    def _believes(self, turn: Turn) -> bool:
        return turn.view.believed(self._calls.recorder.now_ns())

    async def _hold(self, turn: Turn) -> None:
        chance = self._chance
        for _ in range(chance.randint(1, 4)):
            if not self._believes(turn):
                return
            await self._write(turn)
            if chance.random() < 0.05:
                again = chance.choice(turn.got)[0]._replace(new_lease=False)
                await self._calls.acquire(self._line, self._store, again, turn.view)
            if chance.random() < 0.05:
                await self._hold_twice(turn)
            await asyncio.sleep(chance.uniform(0, self._options.hold_s))

    async def _hold_twice(self, turn: Turn) -> None:
        """And gives that up before anything else: the lock stays held."""
        first = self._chance.choice(turn.got)[0]
        if first.mode == "exclusive":
            twice = first._replace(
                attempt=first.attempt + REENTRANT_ATTEMPT, new_lease=False, wait_ms=0, reentrant=True
            )
            await self._calls.acquire(self._line, self._store, twice, turn.view)
            await self._write(turn)
            await self._calls.release(self._line, self._store, twice)

    async def _write(self, turn: Turn) -> None:
        ask, name, token = self._chance.choice(turn.got)
        key, shard = self._chance.choice(name.registers)
        self._writes += 1
        value = f"{self._name}.{self._writes}"
        fencing = self._options.fencing
        await self._calls.put(self._line, self._store, key, shard, value, ask, token, fencing=fencing)

    async def _give_up(self, turn: Turn) -> None:
        if self._chance.random() < 0.2:
            for shard in dict.fromkeys(ask.shard for ask in turn.asks):
                await self._calls.end(self._line, self._store, shard, turn.view.lease)
            return
        if len(turn.got) == 1 and self._options.fencing and self._chance.randrange(100) < self._options.confirm_percent:
            await self._confirm(turn)
            return
        for ask, _, _ in turn.got:
            await self._calls.release(self._line, self._store, ask)

    async def _confirm(self, turn: Turn) -> None:
        ask, name, token = turn.got[0]
        key, shard = name.registers[0]
        self._writes += 1
        value = f"{self._name}.{self._writes}"
        await self._calls.confirm(self._line, self._store, key, shard, value, ask, token)

    async def _haunt(self, turn: Turn) -> None:
        """A holder that does not know that its time is over, as one that was paused."""
        chance = self._chance
        for _ in range(chance.randint(1, 4)):
            if await self._load.stopped_within(turn.view.ttl_ms / 1000 * chance.uniform(0.1, 1.2)):
                return
            await self._write(turn)
        if chance.random() < 0.5:
            await self._calls.renew(self._line, self._store, turn.view, turn.got[0][0].shard)
        if chance.random() < 0.5:
            await self._calls.release(self._line, self._store, turn.got[0][0])

    async def _release_anothers(self, turn: Turn) -> None:
        ask = turn.asks[0]._replace(attempt=FOREIGN_ATTEMPT)
        await self._calls.release(self._line, self._store, ask)
