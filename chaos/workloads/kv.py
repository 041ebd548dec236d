"""The key-value workload: puts, gets and compare-and-sets by many clients on few keys, all shards at once.

Each shard has one active key at a time and as many logical clients on it as asked (eight by default); after 200 operations
the lane goes on with a fresh key of the same shard, which keeps every key's history short enough to judge. Values are
unique. The rate is bounded, and a client that was held up does not catch up in a burst. Every invocation is on record
before it is sent, and ends ok, fail or info by nothing but the error table.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from chaos.history import MISMATCH, EventType, Recorder
from cluster.errors import Code, TenfoldError
from cluster.ring.ring import shard_of

READERS = 16
FINAL_ATTEMPTS = 3
DOUBTS_MAX = 12
"""Writes of unknown outcome on one key; then the lane goes on with a fresh one, since each doubles what the checker must look at."""
LATEST_SHARE = 0.8
"""How often a compare-and-set expects the newest version any client of the key saw, rather than its own."""


class Value(Protocol):
    @property
    def value(self) -> bytes: ...

    @property
    def version(self) -> int: ...


class Store(Protocol):
    """The key-value facade; `client.kv.Kv` is one. Every method may raise TenfoldError."""

    async def put(self, key: str, value: str, *, deadline_s: float) -> int: ...

    async def get(self, key: str, *, deadline_s: float) -> Value | None: ...

    async def compare_and_set(self, key: str, value: str, *, version: int, deadline_s: float) -> int: ...


@dataclass(frozen=True, slots=True)
class KvOptions:
    clients_per_key: int = 8
    operations_per_key: int = 200
    cas_percent: int = 30
    get_percent: int = 35  # the rest are puts
    rate_per_s: int = 800  # of all clients together
    deadline_s: float = 8.0


class Answer(NamedTuple):
    """How an operation ended: the type of its completion and what it tells."""

    type: EventType
    value: str | None = None
    version: int | None = None
    error: str | None = None


class Lane:
    """The active key of one shard."""

    def __init__(self, shard: int, keys: Iterator[str], operations_per_key: int) -> None:
        self.shard = shard
        self.used: list[str] = []
        self._keys = keys
        self._operations_per_key = operations_per_key
        self._left = 0
        self._doubts = 0
        self._latest: dict[str, int] = {}

    def take(self) -> str:
        """The key of the next operation."""
        if not self._left or self._doubts >= DOUBTS_MAX:
            self._left, self._doubts = self._operations_per_key, 0
            self.used.append(next(self._keys))
        self._left -= 1
        return self.used[-1]

    def doubted(self, key: str) -> None:
        """A write of `key` has an unknown outcome, for good."""
        self._doubts += key == self.used[-1]

    def saw(self, key: str, version: int) -> None:
        self._latest[key] = max(version, self._latest.get(key, 0))

    def latest(self, key: str) -> int:
        """The newest version anyone saw; 0 (absent) where nobody saw one."""
        return self._latest.get(key, 0)


def keys_in(shard: int, shards: int, prefix: str) -> Iterator[str]:
    """The keys prefix/1, prefix/2, … that lie in `shard`."""
    number = 0
    while True:
        number += 1
        key = f"{prefix}/{number}"
        if shard_of(key.encode(), shards) == shard:
            yield key


class KvWorkload:
    """Runs until `stop`; then `read_back` reads every key once more. `stores` are shared among the logical clients."""

    def __init__(
        self, recorder: Recorder, stores: Sequence[Store], shards: int, seed: int, options: KvOptions = KvOptions()
    ) -> None:
        assert options.clients_per_key >= 1 and options.operations_per_key >= 1 and options.rate_per_s >= 1
        self._recorder = recorder
        self._stores = stores
        self._seed = seed
        self._options = options
        prefix = f"chaos/{seed}"
        self._lanes = [
            Lane(shard, keys_in(shard, shards, prefix), options.operations_per_key) for shard in range(1, shards + 1)
        ]
        self._stopped = asyncio.Event()
        self._resting: dict[asyncio.Future[None], None] = {}
        self._processes = 0
        self.quiet_until = 0.0  # by the loop's clock: until then nobody begins anything
        self.answers: dict[EventType, int] = {"ok": 0, "fail": 0, "info": 0}

    @property
    def keys(self) -> list[tuple[int, str]]:
        """(shard, key) of all keys used so far."""
        return [(lane.shard, key) for lane in self._lanes for key in lane.used]

    @property
    def active(self) -> list[tuple[int, str]]:
        """(shard, key) of the keys that operations go to now."""
        return [(lane.shard, lane.used[-1]) for lane in self._lanes if lane.used]

    @property
    def operations(self) -> int:
        """Completed so far."""
        return sum(self.answers.values())

    def stop(self) -> None:
        """No operation is begun after this."""
        self._stopped.set()
        for over in self._resting:
            _resolve(over)

    async def run(self) -> None:
        """Returns when `stop` was called and every operation has ended; the slowest takes one deadline."""
        clients = [(lane, number) for number in range(self._options.clients_per_key) for lane in self._lanes]
        pause_s = len(clients) / self._options.rate_per_s
        tasks = [
            asyncio.create_task(self._client(lane, f"{lane.shard}.{number}", self._store(at), pause_s))
            for at, (lane, number) in enumerate(clients)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            self.stop()
            for task in tasks:
                task.cancel()

    def _store(self, at: int) -> Store:
        return self._stores[at % len(self._stores)]

    def new_process(self) -> int:
        """A process number nobody has used."""
        self._processes += 1
        return self._processes

    async def _client(self, lane: Lane, name: str, store: Store, pause_s: float) -> None:
        """One logical client: an operation at a time, under a new process number after each unknown outcome."""
        chance = random.Random(f"{self._seed}/{name}")
        loop = asyncio.get_running_loop()
        process, number = self.new_process(), 0
        own: dict[str, int] = {}
        due = loop.time() + chance.uniform(0, pause_s)
        while not await self.stopped_within(due - loop.time()):
            number += 1
            key = lane.take()
            answer = await self._operate(process, lane, key, f"{name}.{number}", own.get(key, 0), store, chance)
            self.answers[answer.type] += 1
            if answer.version is not None:
                own = {key: answer.version}
                lane.saw(key, answer.version)
            if answer.type == "info":
                process = self.new_process()
            due = max(due + pause_s * chance.uniform(0.5, 1.5), loop.time(), self.quiet_until)

    async def stopped_within(self, seconds: float) -> bool:
        """Waits so long, or until `stop` was called: then True."""
        if self._stopped.is_set():
            return True
        if seconds <= 0:
            await asyncio.sleep(0)
            return self._stopped.is_set()
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        timer = loop.call_later(seconds, _resolve, over)
        self._resting[over] = None
        try:
            await over
        finally:
            timer.cancel()
            del self._resting[over]
        return self._stopped.is_set()

    async def _operate(
        self, process: int, lane: Lane, key: str, value: str, own: int, store: Store, chance: random.Random
    ) -> Answer:
        draw = chance.randrange(100)
        if draw < self._options.cas_percent:
            expected = lane.latest(key) if chance.random() < LATEST_SHARE else own
            return await self._cas(process, lane.shard, key, value, expected, store)
        if draw < self._options.cas_percent + self._options.get_percent:
            return await self._get(process, lane.shard, key, store)
        return await self._put(process, lane.shard, key, value, store)

    async def operate(self, process: int, shard: int, f: str, value: str, store: Store) -> Answer | None:
        """One operation of somebody else on the active key of `shard`, on record like all others; None where there is no key."""
        lane = self._lanes[shard - 1]
        if not lane.used:
            return None
        key = lane.used[-1]
        if f == "get":
            answer = await self._get(process, shard, key, store)
        elif f == "cas":
            answer = await self._cas(process, shard, key, value, lane.latest(key), store)
        else:
            answer = await self._put(process, shard, key, value, store)
        self.answers[answer.type] += 1
        if answer.version is not None:
            lane.saw(key, answer.version)
        return answer

    async def _put(self, process: int, shard: int, key: str, value: str, store: Store) -> Answer:
        self._recorder.record(process, "invoke", "put", key=key, value=value, shard=shard)
        try:
            answer = Answer("ok", version=await store.put(key, value, deadline_s=self._options.deadline_s))
        except TenfoldError as error:
            answer = _failed(error)
        return self._complete(process, "put", key, shard, answer)

    async def _cas(self, process: int, shard: int, key: str, value: str, expected: int, store: Store) -> Answer:
        self._recorder.record(process, "invoke", "cas", key=key, value=value, expected=expected, shard=shard)
        try:
            deadline_s = self._options.deadline_s
            version = await store.compare_and_set(key, value, version=expected, deadline_s=deadline_s)
            answer = Answer("ok", version=version)
        except TenfoldError as error:
            answer = _failed(error)
        return self._complete(process, "cas", key, shard, answer)

    async def _get(self, process: int, shard: int, key: str, store: Store, final: bool = False) -> Answer:
        self._recorder.record(process, "invoke", "get", key=key, shard=shard, final=final)
        try:
            got = await store.get(key, deadline_s=self._options.deadline_s)
            answer = Answer("ok", got.value.decode(), got.version) if got is not None else Answer("ok", None, 0)
        except TenfoldError as error:
            answer = _failed(error)
        return self._complete(process, "get", key, shard, answer, final)

    def _complete(self, process: int, f: str, key: str, shard: int, answer: Answer, final: bool = False) -> Answer:
        kind, value, version, error = answer
        if kind == "info" and f != "get":
            self._lanes[shard - 1].doubted(key)
        self._recorder.record(
            process, kind, f, key=key, value=value, version=version, error=error, shard=shard, final=final
        )
        return answer

    async def read_back(self) -> int:
        """Reads every key used, each until it answers or has failed a few times; how many never answered."""
        left = iter(self.keys)
        unread = await asyncio.gather(*(self._reader(left, self._store(at)) for at in range(READERS)))
        return sum(unread)

    async def _reader(self, left: Iterator[tuple[int, str]], store: Store) -> int:
        unread = 0
        for shard, key in left:
            for _ in range(FINAL_ATTEMPTS):
                answer = await self._get(self.new_process(), shard, key, store, final=True)
                if answer.type == "ok":
                    break
            else:
                unread += 1
        return unread


def _failed(error: TenfoldError) -> Answer:
    """What an error says about the operation. Only a definite one is a failure."""
    if error.code is Code.VERSION_MISMATCH:
        found = error.details.get("found")
        assert isinstance(found, int), "a version mismatch tells the version found"
        return Answer("fail", version=found, error=MISMATCH)
    return Answer("fail" if error.definite else "info", error=error.code.name)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
