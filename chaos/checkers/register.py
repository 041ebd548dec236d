"""The model of one key: a register whose every write gets a version, and versions only grow.

A put answers its version, a get the value and its version (0: absent), a compare-and-set the new version or the one it
found instead, which is an observation too. Values are unique, so a value read names its write, and all observations
together give most unknown writes their version. The law checked is linearizability of that object, with versions
strictly increasing in the order of writes (a version is a log index); the second half makes the order of all observed
writes known beforehand, so that the search hardly branches.

An unknown write nobody observed is dropped before the search. That is sound: values being unique, an order that
contains it stays an order without it, as long as nothing depends on its effect (a version no known value has, or, where
a key is deleted, mere presence or absence); where something may, it is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from chaos.checkers.linearizability import STEPS_MAX, Interval, Search, Verdict, search
from chaos.history import Operation

OPERATIONS = frozenset({"put", "get", "cas", "delete"})


class Unjudgeable(ValueError):
    """The history breaks a condition this checker stands on; `event` is the index of the one that does."""

    def __init__(self, event: int | None, problem: str) -> None:
        super().__init__(problem)
        self.event = event or 0


class State(NamedTuple):
    """`version` is None after an unknown write whose version nobody told; the next write's is above `floor`."""

    value: str | None
    version: int | None
    floor: int


INITIAL = State(None, 0, 0)


class _Kind(IntEnum):
    WRITE = 0
    COMPARE_AND_SET = 1
    GET = 2
    MISMATCH = 3
    DELETE = 4


class _Move(NamedTuple):
    """An operation, resolved: what it needs and what it leaves."""

    kind: _Kind
    value: str | None
    version: int | None  # of its effect or its observation
    expected: int | None
    found: bool | None


class KeyFinding(NamedTuple):
    key: str
    verdict: Verdict
    reason: str
    operations: list[Operation]
    """On a violation, those the reason speaks of."""


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each key, by invocation. Unjudgeable where one is not of this model."""
    keys: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.f not in OPERATIONS:
            raise Unjudgeable(operation.invoked, f"{operation.f!r} is not an operation of a register")
        keys[operation.key].append(operation)
    return dict(keys)


def check_key(operations: list[Operation], steps_max: int = STEPS_MAX) -> KeyFinding:
    """The verdict on one key's operations."""
    key = operations[0].key
    observed = _Observations(operations)
    if observed.contradiction is not None:
        reason, culprits = observed.contradiction
        return KeyFinding(key, Verdict.VIOLATION, reason, culprits)
    effective = observed.effective()
    outcome = _search(effective, observed, steps_max)
    if outcome.verdict is Verdict.VIOLATION:
        assert outcome.blocked is not None
        culprit = effective[outcome.blocked]
        return KeyFinding(key, Verdict.VIOLATION, f"no order of the operations explains {describe(culprit)}", [culprit])
    reason = f"gave up after {outcome.steps} steps" if outcome.verdict is Verdict.UNKNOWN else ""
    return KeyFinding(key, outcome.verdict, reason, [])


def describe(operation: Operation) -> str:
    """One operation and its answer, for people."""
    asked = f"{operation.f} by process {operation.process}"
    if operation.f == "get":
        if operation.type != "ok":
            return f"{asked}: {operation.error or 'no answer'}"
        return f"{asked}: {operation.value if operation.version else 'absent'} (version {operation.version})"
    if operation.f == "cas":
        asked += f" of {operation.value} on version {operation.expected}"
    elif operation.value is not None:
        asked += f" of {operation.value}"
    if operation.type == "ok":
        return f"{asked}: done" + (f" (version {operation.version})" if operation.version is not None else "")
    if operation.mismatch:
        return f"{asked}: refused, version {operation.version} found"
    return f"{asked}: {'failed' if operation.type == 'fail' else 'outcome unknown'} ({operation.error or 'no answer'})"


def _search(operations: list[Operation], observed: _Observations, steps_max: int) -> Search:
    moves = [observed.resolve(operation) for operation in operations]
    intervals = [
        Interval(operation.invoked, None if operation.type == "info" else operation.completed)
        for operation in operations
    ]
    register = _Register(observed.versions, observed.orphans, observed.deletes)

    def step(state: object, index: int) -> State | None:
        assert isinstance(state, State)
        return register.step(state, moves[index])

    return search(intervals, step, INITIAL, steps_max)


class _Register:
    """The transitions. `versions` are those of the key that anyone saw, `orphans` those among them whose value nobody
    saw; an orphan is the work of an unknown write."""

    def __init__(self, versions: set[int], orphans: set[int], deletes: bool) -> None:
        self._ordered = sorted(versions)
        self._preceding = dict(zip(self._ordered, [0, *self._ordered], strict=False))
        self._orphans = orphans
        self._deletes = deletes

    def step(self, state: State, move: _Move) -> State | None:
        """The state after `move`, or None where its answer contradicts `state`."""
        kind, value, version, expected, found = move
        if kind is _Kind.GET:
            return state if state.value == value and state.version == version else None
        if kind is _Kind.MISMATCH:
            assert version is not None
            return self._at_version(state, version)
        if kind is _Kind.DELETE:
            if found is not None and found != (state.value is not None):
                return None
            return self._written(state, None, version) if found is not False else state
        if kind is _Kind.COMPARE_AND_SET:
            assert expected is not None
            compared = self._at_version(state, expected)
            return None if compared is None else self._written(compared, value, version)
        return self._written(state, value, version)

    def _at_version(self, state: State, version: int) -> State | None:
        """`state` if its version is this one, or may be: an observation can be the first to name an unknown write's."""
        if state.version is not None:
            return state if state.version == version else None
        if self._preceding.get(version, 0) <= state.floor < version:
            return State(state.value, version, version)
        return None

    def _written(self, state: State, value: str | None, version: int | None) -> State | None:
        if version is None:
            if value is None:
                return State(None, 0, state.floor)
            return State(value, None, state.floor) if self._deletes or self._orphan_is_next(state.floor) else None
        if not self._preceding[version] <= state.floor < version:
            return None  # versions grow: every lower one that was seen comes first
        return State(value, version if value is not None else 0, version)

    def _orphan_is_next(self, floor: int) -> bool:
        """Else a write nobody observed would be overwritten unobserved, and may as well not have happened."""
        at = bisect_right(self._ordered, floor)
        return at < len(self._ordered) and self._ordered[at] in self._orphans


class _Observations:
    """What all completions of a key together say about its writes."""

    def __init__(self, operations: list[Operation]) -> None:
        self._operations = operations
        self._writer: dict[str, Operation] = {}
        self._version_of: dict[str, int] = {}
        self._witness: dict[int, Operation] = {}
        self.contradiction: tuple[str, list[Operation]] | None = None
        for operation in operations:
            self._note_writer(operation)
        for operation in operations:
            if self.contradiction is None:
                self._note_answer(operation)
        self.orphans = self._versions_without_value()
        self.versions = self._witness.keys() | self.orphans
        self.deletes = any(operation.f == "delete" for operation in operations)

    def _note_writer(self, operation: Operation) -> None:
        if operation.f not in ("put", "cas"):
            return
        if operation.value is None:
            raise Unjudgeable(operation.invoked, f"a {operation.f} without a value")
        if operation.value in self._writer:
            raise Unjudgeable(operation.invoked, f"value {operation.value!r} is written twice; values must be unique")
        self._writer[operation.value] = operation

    def _note_answer(self, operation: Operation) -> None:
        """Binds value and version, and finds what no order can explain."""
        if operation.f == "cas" and operation.expected is None:
            raise Unjudgeable(operation.invoked, "a compare-and-set without an expected version")
        if operation.mismatch:
            if operation.version is None:
                raise Unjudgeable(operation.completed, "a mismatch without the version found")
            if operation.version == operation.expected:
                self.contradiction = (f"it found what it expected: {describe(operation)}", [operation])
        elif operation.type == "ok" and operation.f != "delete":
            self._bind(operation)
        elif operation.type == "ok" and operation.version and operation.found is not False:
            self._bind_version(operation.version, operation)

    def _bind(self, operation: Operation) -> None:
        value, version = operation.value, operation.version
        if version is None:
            raise Unjudgeable(operation.completed, f"an ok {operation.f} without a version")
        if value is None:
            if version != 0:
                self.contradiction = (f"an absent key has no version: {describe(operation)}", [operation])
            return
        writer = self._writer.get(value)
        if writer is None:
            self.contradiction = (f"it read what was never written: {describe(operation)}", [operation])
        elif writer.type == "fail":
            self.contradiction = (
                f"it read the value of a write that failed: {describe(operation)}",
                [writer, operation],
            )
        elif version == 0:
            self.contradiction = (f"a value has a version: {describe(operation)}", [operation])
        elif self._version_of.setdefault(value, version) != version:
            other = self._witness[self._version_of[value]]
            reason = (
                f"one write took effect twice, as versions {self._version_of[value]} and {version}: {describe(writer)}"
            )
            self.contradiction = (reason, [writer, other, operation])
        else:
            self._bind_version(version, operation)

    def _bind_version(self, version: int, operation: Operation) -> None:
        other = self._witness.setdefault(version, operation)
        if other.value != operation.value or (operation.f == "delete" and other is not operation):
            reason = f"version {version} names two writes: {describe(other)}; {describe(operation)}"
            self.contradiction = (reason, [other, operation])

    def _versions_without_value(self) -> set[int]:
        seen: set[int] = set()
        for operation in self._operations:
            if operation.mismatch and operation.version:
                seen.add(operation.version)
            elif operation.f == "cas" and operation.expected and operation.value in self._version_of:
                seen.add(operation.expected)  # it took effect, whether or not its caller learnt that
        return seen - self._witness.keys()

    def effective(self) -> list[Operation]:
        """The operations that say or may have done something."""

        def matters(operation: Operation) -> bool:
            if operation.type == "ok" or operation.mismatch:
                return True
            if operation.type == "fail" or operation.f == "get":
                return False
            return self.deletes or bool(self.orphans) or operation.value in self._version_of

        return [operation for operation in self._operations if matters(operation)]

    def resolve(self, operation: Operation) -> _Move:
        value, version = operation.value, operation.version
        if operation.f == "get":
            return _Move(_Kind.GET, value, version, None, None)
        if operation.mismatch:
            return _Move(_Kind.MISMATCH, None, version, None, None)
        if operation.f == "delete":
            told = version if operation.found is not False else None
            return _Move(_Kind.DELETE, None, told or None, None, operation.found)
        assert value is not None
        kind = _Kind.COMPARE_AND_SET if operation.f == "cas" else _Kind.WRITE
        return _Move(kind, value, self._version_of.get(value), operation.expected, None)
