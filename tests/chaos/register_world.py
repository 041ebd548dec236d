"""Histories for the checker's tests: written by hand, or taken from a true register with random interleaving."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from chaos.history import MISMATCH, Operation


class Hand:
    """Writes a history of one key by hand. Each call is (from, to) on a time line; `to` None is an unknown outcome."""

    def __init__(self, key: str = "k") -> None:
        self.operations: list[Operation] = []
        self._key = key

    def put(self, at: int, to: int | None, value: str, version: int | None = None, type: str = "ok") -> Operation:
        return self._add("put", at, to, type, value=value, version=version)

    def get(self, at: int, to: int, value: str | None, version: int = 0, final: bool = False) -> Operation:
        return self._add("get", at, to, "ok", value=value, version=version, final=final)

    def cas(self, at: int, to: int | None, value: str, expected: int, version: int | None = None) -> Operation:
        return self._add("cas", at, to, "ok", value=value, expected=expected, version=version)

    def mismatch(self, at: int, to: int, value: str, expected: int, found: int) -> Operation:
        return self._add("cas", at, to, "fail", value=value, expected=expected, version=found, error=MISMATCH)

    def delete(self, at: int, to: int | None, found: bool | None = None, version: int | None = None) -> Operation:
        return self._add("delete", at, to, "ok", found=found, version=version)

    def _add(self, f: str, at: int, to: int | None, type: Any, **fields: Any) -> Operation:
        operation = Operation(
            process=len(self.operations), f=f, key=self._key, type="info" if to is None else type, invoked=at,
            completed=to, invoked_ns=at * 1000, completed_ns=None if to is None else to * 1000, **fields,
        )  # fmt: skip
        self.operations.append(operation)
        self.operations.sort(key=lambda each: each.invoked)
        return operation


class TrueRegister:
    """A register that is linearizable by construction: each operation takes effect at one moment between its call and
    its answer, or, where the outcome is unknown, at any moment after its call or never."""

    def __init__(self, chance: random.Random, key: str, *, deletes: bool, unknown: float) -> None:
        self._chance, self._key, self._unknown = chance, key, unknown
        self._kinds = ["put", "get", "get", "cas", "cas", *(["delete"] if deletes else [])]
        self._value: str | None = None
        self._version = 0
        self._index = 0
        self._moment = 0
        self._answers: dict[int, tuple[str, str | None, int | None, bool | None]] = {}
        self.operations: list[Operation] = []

    def run(self, operations: int, processes: int) -> list[Operation]:
        waiting: list[Operation] = []  # called, without effect
        effected: list[Operation] = []
        abandoned: list[Operation] = []  # unknown to their caller, perhaps still to take effect
        while len(self.operations) < operations or waiting or effected:
            self._moment += 1
            moves: list[Callable[[], None]] = []
            if len(self.operations) < operations and len(waiting) + len(effected) < processes:
                moves += [lambda: waiting.append(self._call())] * 2
            if waiting:
                moves += [lambda: self._take(waiting, effected)] * 2
            if effected:
                moves += [lambda: self._answer(effected)] * 2
            if abandoned:
                moves += [lambda: self._effect(self._draw(abandoned))]
            if waiting and self._chance.random() < self._unknown:
                moves = [lambda: abandoned.append(self._draw(waiting))]
            self._chance.choice(moves)()
        return self.operations

    def _draw(self, among: list[Operation]) -> Operation:
        return among.pop(self._chance.randrange(len(among)))

    def _call(self) -> Operation:
        number = len(self.operations)
        f = self._chance.choice(self._kinds)
        operation = Operation(number, f, self._key, "info", self._moment, None, self._moment * 1000, None)
        if f in ("put", "cas"):
            operation.value = f"{self._key}/{number}"
        if f == "cas":
            operation.expected = (
                self._version if self._chance.random() < 0.7 else self._chance.randrange(self._version + 1)
            )
        self.operations.append(operation)
        return operation

    def _take(self, waiting: list[Operation], effected: list[Operation]) -> None:
        operation = self._draw(waiting)
        self._effect(operation)
        effected.append(operation)

    def _effect(self, operation: Operation) -> None:
        """Takes effect now; the answer is kept, and seen only if it ever reaches the caller."""
        self._index += self._chance.randrange(1, 3)
        answer: tuple[str, str | None, int | None, bool | None]
        if operation.f == "get":
            answer = ("ok", self._value, self._version, None)
        elif operation.f == "cas" and operation.expected != self._version:
            answer = ("fail", operation.value, self._version, None)
        elif operation.f == "delete":
            found = self._value is not None
            answer = ("ok", None, self._index if found else None, found)
            self._value, self._version = None, 0
        else:
            answer = ("ok", operation.value, self._index, None)
            self._value, self._version = operation.value, self._index
        self._answers[operation.process] = answer

    def _answer(self, effected: list[Operation]) -> None:
        operation = self._draw(effected)
        if self._chance.random() < self._unknown:
            return  # took effect, and nobody learns it
        kind, value, version, found = self._answers[operation.process]
        operation.type = kind  # type: ignore[assignment]
        operation.completed, operation.completed_ns = self._moment, self._moment * 1000
        operation.value, operation.version, operation.found = value, version, found
        if kind == "fail":
            operation.error = MISMATCH


def explainable(operations: list[Operation]) -> bool:
    """The naive judge for a handful of operations: tries every order that respects real time, every choice of unknown
    writes that took effect, and every version those may have had."""
    required = [each for each in operations if each.type == "ok" or each.mismatch]
    optional = [each for each in operations if each.type == "info" and each.f != "get"]
    versions = sorted({each.version or 0 for each in operations} | {each.expected or 0 for each in operations})

    def explore(left: list[Operation], value: str | None, version: float, last: float) -> bool:
        if not any(each in required for each in left):
            return True
        for each in left:
            if any(
                other.completed is not None and other.completed < each.invoked for other in left if other in required
            ):
                continue
            rest = [other for other in left if other is not each]
            for after in effects(each, value, version, last):
                if explore(rest, *after):
                    return True
        return False

    def effects(
        each: Operation, value: str | None, version: float, last: float
    ) -> list[tuple[str | None, float, float]]:
        if each.f == "get":
            return [(value, version, last)] if (each.value, each.version) == (value, version) else []
        if each.mismatch:
            return [(value, version, last)] if each.version == version != each.expected else []
        if each.f == "cas" and each.expected != version:
            return []
        if each.f == "delete":
            if each.found is not None and each.found != (value is not None):
                return []
            if value is None:
                return [(None, 0, last)]
            if each.version is not None and each.type == "ok":
                return [(None, 0, each.version)] if each.version > last else []
            return [(None, 0, last + 0.001)]
        if each.type == "ok":
            assert each.version is not None
            return [(each.value, each.version, each.version)] if each.version > last else []
        return [(each.value, new, new) for new in [last + 0.001, *versions] if new > last]

    return explore(required + optional, None, 0, 0)
