"""One shard's applier over its views and an engine in memory, and a key-value model to hold it against."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from hypothesis import strategies as st

from cluster.errors import Code
from cluster.limits import DEFAULT, Limits
from cluster.raft.messages import Entry
from cluster.types import EntryKind
from node.machines.applier import Applier, Outcome, ParsedEntry
from node.machines.kv import KvMachine
from node.machines.lock import LockMachine, event_message
from node.machines.meta import MetaMachine
from node.storage.memory import MemoryState
from node.storage.view import CapabilityView, NodeState, ShardState, StateBatch
from proto.gen.entry_pb2 import EntryPayload, Request
from proto.gen.kv_pb2 import KvAnswer, KvCommand, KvGet, KvOp, KvOpResult, KvQuery, KvResult, KvScan
from proto.gen.lock_pb2 import LockCommand, LockEvent, LockResult

VIEWS = ("kv", "lock", "meta", "session", "fence", "feed")


class CountedView:
    """A shard's view, with its reads and writes counted."""

    def __init__(self, view: CapabilityView) -> None:
        self.view = view
        self.reset()

    def reset(self) -> None:
        self.gets = self.scans = self.puts = self.deletes = 0

    @property
    def pairs(self) -> dict[bytes, bytes]:
        """All that is in it, in key order."""
        return dict(self.view.scan(b"", b""))

    def get(self, key: bytes) -> bytes | None:
        self.gets += 1
        return self.view.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self.scans += 1
        return self.view.scan(start, end, reverse=reverse)

    def put(self, key: bytes, value: bytes) -> None:
        self.puts += 1
        self.view.put(key, value)

    def delete(self, key: bytes) -> None:
        self.deletes += 1
        self.view.delete(key)


class ShardWorld:
    """Applies entries one after the other, as a replica does; every law is checked after each. The overlay goes to the
    engine after every third, so that reads meet both."""

    def __init__(self, limits: Limits, *, checked: bool = True) -> None:
        self.limits = limits
        self.checked = checked
        self.engine = MemoryState()
        self.index = 0
        self.time_ms = 1000
        self.principal = ""  # of those that ask for locks
        self._begin()

    def _begin(self) -> None:
        self.overlay = StateBatch()
        self.state = ShardState(self.engine, 1, self.overlay, 11, self.limits)
        machines = {"kv": KvMachine(self.limits), "lock": LockMachine(self.limits), "meta": MetaMachine(self.limits)}
        self.applier = Applier(1, machines, self.limits)
        self.load()

    def load(self) -> None:
        self.views = {name: CountedView(self.state.view(name)) for name in VIEWS}
        self.applier.load(self.views.__getitem__, self.state.time_ms)

    def restart(self) -> None:
        """All that was in memory is gone."""
        self.write()
        self._begin()

    def write(self) -> None:
        assert NodeState(self.engine).write_batch(self.overlay)

    def apply(self, entry: Entry, *, want_results: bool = True) -> list[Outcome]:
        self.index = entry.index
        outcomes = self.applier.apply(entry, want_results=want_results)
        assert (outcomes is not None) == want_results
        self.state.set_applied(entry.index, entry.term, self.applier.time_ms)
        if entry.index % 3 == 0:
            self.write()
        if self.checked:
            self.applier.check_invariants()
        return outcomes or []

    def entry(self, *requests: Request, kind: EntryKind = EntryKind.NORMAL) -> list[Outcome]:
        payload = EntryPayload(time_ms=self.time_ms, wall_ms=7, requests=requests)
        return self.apply(Entry(self.index + 1, 1, kind, payload.SerializeToString()))

    def open(self) -> int:
        return self.entry(Request(open_session=True), kind=EntryKind.SESSION)[0].session

    def kv(self, command: KvCommand, session: int = 0, sequence: int = 0, low_water: int = 0) -> Outcome:
        return self.entry(kv_request(command, session, sequence, low_water))[0]

    def lock(self, session: int = 0, sequence: int = 0, **command: Any) -> Outcome:
        """One lock command, say acquire=LockAcquire(...)."""
        body = LockCommand(**command).SerializeToString()
        request = Request(capability="lock", session=session, sequence=sequence, body=body, principal=self.principal)
        return self.entry(request)[0]

    def locked(self, **command: Any) -> LockResult:
        """The result of a lock command that must succeed."""
        outcome = self.lock(**command)
        assert outcome.code == Code.OK, outcome
        return LockResult.FromString(outcome.body)

    def told(self, index: int = 0) -> list[LockEvent]:
        """What the feed tells of locks, of the last entry if none is named."""
        index = index or self.index
        events, _ = self.applier.feed.read(max(0, index - 1), b"", b"", 10**9, "lock")
        return [event_message(at, key, event) for at, _, key, event in events if at == index]

    def batch(self, *ops: KvOp) -> list[KvOpResult]:
        """The results of a batch, those of plain puts made explicit."""
        outcome = self.kv(KvCommand(ops=ops))
        assert outcome.code == Code.OK, outcome
        return results_of(outcome, ops)

    def put(self, key: bytes, value: bytes = b"") -> int:
        return self.batch(put(key, value))[0].version

    def pulse(self) -> None:
        self.entry(kind=EntryKind.PULSE)

    def get(self, key: bytes) -> Any:
        return self.applier.query("kv", KvQuery(get=KvGet(keys=[key]))).items[0]

    def scan(self, **arguments: Any) -> KvAnswer:
        answer: KvAnswer = self.applier.query("kv", KvQuery(scan=KvScan(**arguments)))
        return answer

    def contents(self) -> dict[str, list[tuple[bytes, bytes]]]:
        return {name: list(view.pairs.items()) for name, view in self.views.items()}


def kv_request(command: KvCommand, session: int = 0, sequence: int = 0, low_water: int = 0) -> Request:
    return Request(
        capability="kv",
        session=session,
        sequence=sequence,
        low_water=low_water,
        principal="someone",
        body=command.SerializeToString(),
    )


def parsed(entry: Entry) -> Entry:
    """The entry as the leader that proposed it holds it."""
    payload = EntryPayload.FromString(entry.payload)
    kinds: dict[str, Any] = {"kv": KvCommand, "lock": LockCommand}
    commands = [None if r.open_session else kinds[r.capability].FromString(r.body) for r in payload.requests]
    return Entry(entry.index, entry.term, entry.kind, entry.payload, ParsedEntry(payload, commands))


def results_of(outcome: Outcome, ops: Any) -> list[KvOpResult]:
    return list(KvResult.FromString(outcome.body).ops) or [KvOpResult(version=outcome.index)] * len(ops)


def put(key: bytes, value: bytes = b"", ttl_ms: int = 0) -> KvOp:
    return KvOp(kind=KvOp.PUT, key=key, value=value, ttl_ms=ttl_ms)


def increment(key: bytes, delta: int, ttl_ms: int = 0) -> KvOp:
    return KvOp(kind=KvOp.INCREMENT, key=key, delta=delta, ttl_ms=ttl_ms)


def tiny(**exact: int) -> Limits:
    """The smallest bounds that tests draw from, but for those named."""
    lowest = {each.name: each.metadata["test_range"][0] for each in fields(Limits)}
    return replace(DEFAULT, **{**lowest, **exact})


# What machines and services are bounded by.
BOUNDS = re.compile(
    "(key|value|batch|transaction|scan|ttl|pulse|session|sessions|feed|lock|locks|lease|fence|fences)_.*"
)


def drawn_limits() -> st.SearchStrategy[Limits]:
    ranges = {each.name: st.integers(*each.metadata["test_range"]) for each in fields(Limits)}
    drawn = {name: numbers for name, numbers in ranges.items() if BOUNDS.fullmatch(name)}
    return st.fixed_dictionaries(drawn).map(lambda bounds: tiny(**bounds))


class KvModel:
    """What the key-value machine must do, in the plainest words: key -> (value, version, expires_ms)."""

    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[bytes, int, int]] = {}

    def operate(self, op: KvOp, index: int, now_ms: int) -> KvOpResult:
        value, version, expires_ms = self.rows.get(op.key, (b"", 0, 0))
        if op.kind == KvOp.GET:
            return KvOpResult(found=version > 0, version=version, value=value)
        if op.kind in (KvOp.COMPARE_AND_SET, KvOp.COMPARE_AND_DELETE) and version != op.expected_version:
            return KvOpResult(code=Code.VERSION_MISMATCH, version=version)
        if op.kind in (KvOp.DELETE, KvOp.COMPARE_AND_DELETE):
            gone = self.rows.pop(op.key, None) is not None
            return KvOpResult(found=gone, version=index if gone else 0)
        new_ms = now_ms + op.ttl_ms if op.ttl_ms else 0
        if op.kind != KvOp.INCREMENT:
            self.rows[op.key] = (op.value, index, new_ms)
            return KvOpResult(version=index)
        text = value.decode("latin-1") if version else "0"
        plain = text.removeprefix("-")
        if not (plain.isascii() and plain.isdigit() and len(plain) <= 19 and -(2**63) <= int(text) < 2**63):
            return KvOpResult(code=Code.NOT_A_NUMBER, version=version)
        number = int(text) + op.delta
        if not -(2**63) <= number < 2**63:
            return KvOpResult(code=Code.NUMBER_OVERFLOW, version=version)
        self.rows[op.key] = (str(number).encode(), index, new_ms or expires_ms)
        return KvOpResult(version=index, number=number)

    def expire(self, now_ms: int) -> None:
        self.rows = {key: row for key, row in self.rows.items() if not 0 < row[2] <= now_ms}
