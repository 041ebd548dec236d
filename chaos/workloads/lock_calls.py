"""What clients of locks do, one recorded call at a time: every invocation is on record before it is sent.

`Locks` is what a call goes to. A `LeaseView` is what its holder believes: a lease lasts, in each shard, from the moment its last
answered renewal was sent for its ttl, less what clocks may drift.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from chaos.history import EventType, LockFacts, Recorder
from chaos.workloads.kv import Value
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT

DRIFT = DEFAULT.lease_drift_percent / 100


class Ask(NamedTuple):
    """One attempt to hold one name."""

    name: str
    shard: int
    lease: int
    attempt: int
    ttl_ms: int
    wait_ms: int
    mode: str = "exclusive"
    capacity: int = 0
    permits: int = 0
    new_lease: bool = False
    delay_ms: int = 0
    reentrant: bool = False

    @property
    def owner(self) -> str:
        """What everybody is told of who holds: here it says which lease that is."""
        return f"{self.lease:x}"

    @property
    def metadata(self) -> bytes:
        return str(self.attempt).encode()


class Granted(NamedTuple):
    token: int
    log_index: int


class Released(NamedTuple):
    found: bool
    log_index: int


class NotGranted(Exception):
    """A definite answer: held by another, or a wait that has ended. `why` is a word of `LockEvent.Kind`, or HELD."""

    def __init__(self, why: str, index: int = 0, cycle: str = "") -> None:
        super().__init__(why)
        self.why, self.index, self.cycle = why, index, cycle


class Locks(Protocol):
    """Every method may raise TenfoldError. Nothing is sent twice under another identity."""

    async def acquire(self, ask: Ask, queued: Callable[[int], None], *, deadline_s: float) -> Granted:
        """NotGranted. Tells `queued` the log index at which the attempt began to wait."""
        ...

    async def renew(self, shard: int, lease: int, ttl_ms: int, *, deadline_s: float) -> None: ...

    async def release(self, ask: Ask, *, deadline_s: float) -> Released: ...

    async def end(self, shard: int, lease: int, *, deadline_s: float) -> Released: ...

    async def put(self, key: str, value: str, fence: tuple[str, int] | None, *, deadline_s: float) -> int: ...

    async def confirm(self, key: str, value: str, fence: tuple[str, int], *, deadline_s: float) -> int:
        """Writes and releases the lock in one commit; the version. The key lies in the lock's shard."""
        ...

    async def force(self, name: str, shard: int, *, deadline_s: float) -> Released:
        """An operator takes the lock away from whoever holds it."""
        ...

    async def get(self, key: str, *, deadline_s: float) -> Value | None: ...


class LeaseView:
    """`until_ns` of each shard, by the recorder's clock."""

    def __init__(self, lease: int, ttl_ms: int) -> None:
        self.lease, self.ttl_ms = lease, ttl_ms
        self.until_ns: dict[int, int] = {}
        self.lost = False

    def renewed(self, shard: int, sent_ns: int) -> int:
        """Until when it lasts there."""
        until_ns = max(self.would_last(sent_ns), self.until_ns.get(shard, 0))
        self.until_ns[shard] = until_ns
        return until_ns

    def would_last(self, sent_ns: int) -> int:
        return sent_ns + int(self.ttl_ms * 1e6 * (1 - DRIFT))

    def believed(self, now_ns: int) -> bool:
        """In all shards."""
        return not self.lost and bool(self.until_ns) and now_ns < min(self.until_ns.values())


class Line:
    """Whoever has one operation at a time: a process of the history, another one after each unknown outcome."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.process = calls.new_process()

    def ended(self, type: EventType) -> None:
        if type == "info":
            self.process = self._calls.new_process()


class Calls:
    """Shared by all clients of a run; `locks` differ by client."""

    def __init__(self, recorder: Recorder, deadline_s: float, first_process: int = 0) -> None:
        """`first_process`: of numbers above it nobody else makes use."""
        self.recorder = recorder
        self.answers: dict[EventType, int] = {"ok": 0, "fail": 0, "info": 0}
        self._deadline_s = deadline_s
        self._processes = first_process

    def new_process(self) -> int:
        """A process number nobody has used."""
        self._processes += 1
        return self._processes

    async def acquire(self, line: Line, locks: Locks, ask: Ask, view: LeaseView) -> Granted | str | None:
        """The grant, or why there is none: a word of NotGranted or of the error table; None where the outcome is unknown."""
        asked = LockFacts(
            lease=ask.lease, attempt=ask.attempt, mode=ask.mode, capacity=ask.capacity, permits=ask.permits,
            ttl_ms=ask.ttl_ms, wait_ms=ask.wait_ms, delay_ms=ask.delay_ms, reentrant=ask.reentrant,
        )  # fmt: skip
        sent = self._invoke(line, "acquire", ask.name, ask.shard, asked)
        told = LockFacts()

        def queued(index: int) -> None:
            told.queued = index
            view.renewed(ask.shard, sent)

        try:
            granted = await locks.acquire(ask, queued, deadline_s=self._deadline_s + ask.wait_ms / 1000)
        except NotGranted as error:
            told.index, told.cycle = error.index, error.cycle
            self._done(line, "fail", "acquire", ask.name, ask.shard, error=error.why, lock=told)
            return error.why
        except TenfoldError as error:
            if error.code is Code.DEADLOCK:
                told.cycle = error.message
            type = self._failed(line, error, "acquire", ask.name, ask.shard, lock=told)
            return error.code.name if type == "fail" else None
        told.token, told.index = granted.token, granted.log_index
        told.until_ns = view.renewed(ask.shard, sent)
        self._done(line, "ok", "acquire", ask.name, ask.shard, lock=told)
        return granted

    async def renew(self, line: Line, locks: Locks, view: LeaseView, shard: int) -> str | None:
        """None if it was renewed, "" if nobody knows."""
        key = f"lease/{view.lease:x}"
        sent = self._invoke(line, "renew", key, shard, LockFacts(lease=view.lease, ttl_ms=view.ttl_ms))
        try:
            await locks.renew(shard, view.lease, view.ttl_ms, deadline_s=self._deadline_s)
        except TenfoldError as error:
            type = self._failed(line, error, "renew", key, shard)
            return error.code.name if type == "fail" else ""
        self._done(line, "ok", "renew", key, shard, lock=LockFacts(until_ns=view.renewed(shard, sent)))
        return None

    async def release(self, line: Line, locks: Locks, ask: Ask) -> EventType:
        asked = LockFacts(lease=ask.lease, attempt=ask.attempt)
        work = locks.release(ask, deadline_s=self._deadline_s)
        return await self._give_up(line, "release", ask.name, ask.shard, asked, work)

    async def end(self, line: Line, locks: Locks, shard: int, lease: int) -> EventType:
        """Ends the lease in that shard."""
        work = locks.end(shard, lease, deadline_s=self._deadline_s)
        return await self._give_up(line, "end", f"lease/{lease:x}", shard, LockFacts(lease=lease), work)

    async def force(self, line: Line, locks: Locks, name: str, shard: int) -> EventType:
        work = locks.force(name, shard, deadline_s=self._deadline_s)
        return await self._give_up(line, "force", name, shard, LockFacts(), work)

    async def _give_up(
        self, line: Line, f: str, key: str, shard: int, asked: LockFacts, work: Coroutine[Any, Any, Released]
    ) -> EventType:
        self._invoke(line, f, key, shard, asked)
        try:
            released = await work
        except TenfoldError as error:
            return self._failed(line, error, f, key, shard)
        index = LockFacts(index=released.log_index)
        self._done(line, "ok", f, key, shard, found=released.found, lock=index)
        return "ok"

    async def put(
        self, line: Line, locks: Locks, key: str, shard: int, value: str, ask: Ask, token: int, *, fencing: bool
    ) -> EventType:
        """A write under the token; without fencing the token is on record alone."""
        mode = "holder" if shard == ask.shard else ""  # then the node asks for the present holder's token
        facts = LockFacts(name=ask.name, lease=ask.lease, attempt=ask.attempt, token=token, mode=mode)
        self._invoke(line, "put", key, shard, facts, value=value)
        fence = (ask.name, token) if fencing else None
        try:
            version = await locks.put(key, value, fence, deadline_s=self._deadline_s)
        except TenfoldError as error:
            return self._failed(line, error, "put", key, shard, value=value)
        self._done(line, "ok", "put", key, shard, value=value, version=version)
        return "ok"

    async def confirm(
        self, line: Line, locks: Locks, key: str, shard: int, value: str, ask: Ask, token: int
    ) -> EventType:
        """A write that releases the lock."""
        facts = LockFacts(name=ask.name, lease=ask.lease, attempt=ask.attempt, token=token, mode="confirm")
        self._invoke(line, "put", key, shard, facts, value=value)
        try:
            version = await locks.confirm(key, value, (ask.name, token), deadline_s=self._deadline_s)
        except TenfoldError as error:
            return self._failed(line, error, "put", key, shard, value=value)
        self._done(line, "ok", "put", key, shard, value=value, version=version)
        return "ok"

    async def get(self, line: Line, locks: Locks, key: str, shard: int) -> EventType:
        """The last look at a register."""
        self._invoke(line, "get", key, shard, None, final=True)
        try:
            found = await locks.get(key, deadline_s=self._deadline_s)
        except TenfoldError as error:
            return self._failed(line, error, "get", key, shard, final=True)
        value, version = (found.value.decode(), found.version) if found is not None else (None, 0)
        self._done(line, "ok", "get", key, shard, value=value, version=version, final=True)
        return "ok"

    # -- records -------------------------------------------------------------------------------------------------------

    def _invoke(self, line: Line, f: str, key: str, shard: int, facts: LockFacts | None, **more: Any) -> int:
        """When it was sent."""
        return self.recorder.record(line.process, "invoke", f, key=key, shard=shard, lock=facts, **more).time

    def _done(self, line: Line, type: EventType, f: str, key: str, shard: int, **told: Any) -> None:
        self.recorder.record(line.process, type, f, key=key, shard=shard, **told)
        self.answers[type] += 1
        line.ended(type)

    def _failed(self, line: Line, error: TenfoldError, f: str, key: str, shard: int, **told: Any) -> EventType:
        """What an error says about the operation: only a definite one is a failure."""
        type: EventType = "fail" if error.definite else "info"
        self._done(line, type, f, key, shard, error=error.code.name, **told)
        return type
