"""From a violation to the few operations that prove it.

Operations are taken away as long as what is left is still a violation. What may be taken: one observation alone, or one
write together with everything that speaks of it (its readers, the compare-and-sets on its version, and so on down).
Such a removal never makes a violation out of a history that was none, so what remains is a proof about the original.
"""

from __future__ import annotations

from collections import defaultdict

from chaos.checkers.linearizability import Verdict
from chaos.checkers.register import KeyFinding, check_key, describe
from chaos.history import Operation

SHRINK_STEPS_MAX = 50_000
"""Search steps for one attempt; an attempt that exceeds them is not taken."""


def smallest(operations: list[Operation], finding: KeyFinding) -> KeyFinding:
    """The violation again, with the smallest set of operations found that proves it."""
    assert finding.verdict is Verdict.VIOLATION
    kept, best = _until_completion(operations, finding), finding
    size = max(1, len(kept) // 2)
    while True:
        before, at = len(kept), 0
        while at < len(kept):
            taken = _closure(kept, kept[at : at + size])
            rest = [operation for operation in kept if operation.invoked not in taken]
            attempt = check_key(rest, SHRINK_STEPS_MAX) if rest else None
            if attempt is not None and attempt.verdict is Verdict.VIOLATION:
                kept, best = rest, attempt
            else:
                at += size
        if size == 1 and len(kept) == before:
            return best._replace(operations=kept)
        size = max(1, size // 2)


def timeline(finding: KeyFinding) -> list[str]:
    """The operations of a finding, one a line, by invocation; times in seconds since the start of the run."""
    lines = []
    for operation in sorted(finding.operations, key=lambda each: each.invoked):
        end = "…" if operation.completed_ns is None else f"{operation.completed_ns / 1e9:.4f}"
        lines.append(f"{operation.invoked_ns / 1e9:10.4f} – {end:<10} s  {describe(operation)}")
    return lines


def _until_completion(operations: list[Operation], finding: KeyFinding) -> list[Operation]:
    """Those invoked before the last operation of the finding returned, if they prove it on their own."""
    ends = [operation.completed for operation in finding.operations if operation.completed is not None]
    early = [operation for operation in operations if ends and operation.invoked < max(ends)]
    if early and check_key(early, SHRINK_STEPS_MAX).verdict is Verdict.VIOLATION:
        return early
    return operations


def _closure(operations: list[Operation], start: list[Operation]) -> set[int]:
    """What has to go when `start` goes; operations are named by their invocation."""
    speakers = _Speakers(operations)
    gone, fresh = {operation.invoked for operation in start}, list(start)
    while fresh:
        for speaker in speakers.of(fresh.pop()):
            if speaker.invoked not in gone:
                gone.add(speaker.invoked)
                fresh.append(speaker)
    return gone


class _Speakers:
    """Who speaks of a write: names its value or its version, or tells whether the key was there."""

    def __init__(self, operations: list[Operation]) -> None:
        self._by_value: dict[str, list[Operation]] = defaultdict(list)
        self._by_version: dict[int, list[Operation]] = defaultdict(list)
        self._versions_of: dict[str, set[int]] = defaultdict(set)
        self._of_presence: list[Operation] = []
        self._deletes = any(operation.f == "delete" for operation in operations)
        for operation in operations:
            self._note(operation)
        self._with_value = {version for versions in self._versions_of.values() for version in versions}

    def _note(self, operation: Operation) -> None:
        seen = operation.version if operation.mismatch else operation.expected
        if operation.f == "cas" and seen is not None:
            self._by_version[seen].append(operation)
        if operation.type == "ok" and operation.value is not None and operation.version is not None:
            self._versions_of[operation.value].add(operation.version)
            if operation.f == "get":
                self._by_value[operation.value].append(operation)
        absent = operation.f == "get" and operation.type == "ok" and operation.value is None
        if absent or operation.f == "delete" or (operation.f == "cas" and seen == 0):
            self._of_presence.append(operation)

    def of(self, operation: Operation) -> list[Operation]:
        if not operation.writes or operation.mismatch:
            return []
        found = list(self._of_presence) if self._deletes else []
        if operation.value is not None:
            versions = self._versions_of.get(operation.value) or self._by_version.keys() - self._with_value - {0}
            found += self._by_value.get(operation.value, [])
            found += [each for version in versions for each in self._by_version.get(version, [])]
        return found
