"""One shard's applier over views in memory, and a key-value model to hold it against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from hypothesis import strategies as st
from sortedcontainers import SortedDict

from cluster.errors import Code
from cluster.limits import DEFAULT, Limits
from cluster.raft.messages import Entry
from cluster.types import EntryKind
from node.machines.applier import Applier, Outcome, ParsedEntry
from node.machines.kv import KvMachine
from node.machines.meta import MetaMachine
from proto.gen.entry_pb2 import EntryPayload, Request
from proto.gen.kv_pb2 import KvAnswer, KvCommand, KvGet, KvOp, KvOpResult, KvQuery, KvResult, KvScan

VIEWS = ("kv", "meta", "session", "feed")


class MemoryView:
    """An ordered byte-key map. Counts its reads and writes."""

    def __init__(self) -> None:
        self.pairs: Any = SortedDict()
        self.gets = self.scans = self.puts = self.deletes = 0

    def get(self, key: bytes) -> bytes | None:
        self.gets += 1
        return self.pairs.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self.scans += 1
        last = end or None
        for key in list(self.pairs.irange(start, last, inclusive=(True, False), reverse=reverse)):
            yield key, self.pairs[key]

    def put(self, key: bytes, value: bytes) -> None:
        self.puts += 1
        self.pairs[key] = value

    def delete(self, key: bytes) -> None:
        self.deletes += 1
        self.pairs.pop(key, None)


class ShardWorld:
    """Applies entries one after the other, as a replica does; every law is checked after each."""

    def __init__(self, limits: Limits, *, checked: bool = True) -> None:
        self.limits = limits
        self.checked = checked
        self.views = {name: MemoryView() for name in VIEWS}
        self.index = 0
        self.time_ms = 1000
        self.applier = self._applier()
        self.applier.load(self.views.__getitem__, 0)

    def _applier(self) -> Applier:
        return Applier(1, {"kv": KvMachine(self.limits), "meta": MetaMachine()}, self.limits)

    def restart(self) -> None:
        """A new applier over the same views, as after a crash or an installed snapshot."""
        time_ms = self.applier.time_ms
        self.applier = self._applier()
        self.applier.load(self.views.__getitem__, time_ms)

    def apply(self, entry: Entry) -> list[Outcome]:
        self.index = entry.index
        outcomes = self.applier.apply(entry, want_results=True)
        assert outcomes is not None
        if self.checked:
            self.applier.check_invariants()
        return outcomes

    def entry(self, *requests: Request, kind: EntryKind = EntryKind.NORMAL) -> list[Outcome]:
        payload = EntryPayload(time_ms=self.time_ms, wall_ms=7, requests=requests)
        return self.apply(Entry(self.index + 1, 1, kind, payload.SerializeToString()))

    def open(self) -> int:
        return self.entry(Request(open_session=True), kind=EntryKind.SESSION)[0].session

    def kv(self, command: KvCommand, session: int = 0, sequence: int = 0, low_water: int = 0) -> Outcome:
        return self.entry(kv_request(command, session, sequence, low_water))[0]

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
    commands = [None if r.open_session else KvCommand.FromString(r.body) for r in payload.requests]
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


def drawn_limits() -> st.SearchStrategy[Limits]:
    ranges = {each.name: st.integers(*each.metadata["test_range"]) for each in fields(Limits)}
    return st.fixed_dictionaries(ranges).map(lambda drawn: replace(DEFAULT, **drawn))


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
