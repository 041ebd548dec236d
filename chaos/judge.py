"""From a history to a verdict.

    violation  some key is not linearizable, or an acknowledged write is lost
    unknown    nothing proved wrong, but a key could not be decided or was not read back, or there was nothing to judge
    ok         every key linearizable, every acknowledged write there

A run is weak, whatever its verdict, if it could hardly have found anything: over 2% unknown operations, no kill, or too few
operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from chaos.checkers import availability, durability, register
from chaos.checkers.availability import Outage
from chaos.checkers.durability import Durability
from chaos.checkers.explain import smallest
from chaos.checkers.linearizability import STEPS_MAX, Verdict
from chaos.checkers.register import KeyFinding
from chaos.history import History, HistoryError, Operation

UNKNOWN_SHARE_MAX = 0.02
OPERATIONS_MIN = 500
OPERATIONS_PER_KEY_MIN = 50
EXPLAINED_MAX = 10
"""Violating keys whose smallest proof is looked for."""


class Result(msgspec.Struct):
    """What `--json` prints. `operations` were invoked; `acknowledged` are the writes among them that were answered ok; `failed` surely
    had no effect, compare-and-sets that found another version not counted; `linearizable` is null where undecided; times are over all pairs of a kill and a data shard."""

    verdict: Verdict
    operations: int
    acknowledged: int
    unknown: int
    failed: int
    acknowledged_lost: int
    linearizable: bool | None
    keys_checked: int
    faults: int
    max_unavailable_ms: float
    unavailable_p99_ms: float
    seed: int
    history: str
    weak: bool


@dataclass(frozen=True)
class Judgement:
    result: Result
    violations: list[KeyFinding]
    undecided: list[KeyFinding]
    durability: Durability
    outages: list[Outage]
    weak_because: list[str]


def judge(history: History, path: Path, steps_max: int = STEPS_MAX) -> Judgement:
    """The judgement of a history that was read from `path`. HistoryError where it is not one of this model."""
    try:
        keys = register.by_key(history.operations)
        findings = [register.check_key(operations, steps_max) for operations in keys.values()]
    except register.Unjudgeable as error:
        raise HistoryError(error.event + 2, str(error)) from None
    violations = [each for each in findings if each.verdict is Verdict.VIOLATION]
    undecided = [each for each in findings if each.verdict is Verdict.UNKNOWN]
    explained = [smallest(keys[each.key], each) for each in violations[:EXPLAINED_MAX]]
    kept = durability.check(keys)
    outages = availability.outages(history.operations, history.faults, history.end_ns)
    lengths = [outage.milliseconds for outage in outages]
    kills = len(availability.kills(history.faults))
    weak_because = _weaknesses(history.operations, len(keys), kills)
    result = Result(
        verdict=_verdict(violations, undecided, kept, len(keys)),
        operations=len(history.operations),
        acknowledged=kept.acknowledged,
        unknown=sum(operation.type == "info" for operation in history.operations),
        failed=sum(operation.type == "fail" and not operation.mismatch for operation in history.operations),
        acknowledged_lost=len(kept.lost),
        linearizable=False if violations else None if undecided or not keys else True,
        keys_checked=len(findings),
        faults=kills,
        max_unavailable_ms=round(max(lengths, default=0.0), 1),
        unavailable_p99_ms=round(availability.percentile(lengths, 0.99), 1),
        seed=history.header.seed,
        history=str(path),
        weak=bool(weak_because),
    )
    return Judgement(result, explained + violations[EXPLAINED_MAX:], undecided, kept, outages, weak_because)


def _verdict(violations: list[KeyFinding], undecided: list[KeyFinding], kept: Durability, keys: int) -> Verdict:
    if violations or kept.lost:
        return Verdict.VIOLATION
    return Verdict.UNKNOWN if undecided or kept.unread or not keys else Verdict.OK


def _weaknesses(operations: list[Operation], keys: int, kills: int) -> list[str]:
    """Why the run proves little, for people; [] if it does not."""
    found = []
    unknown = sum(operation.type == "info" for operation in operations)
    if unknown > UNKNOWN_SHARE_MAX * len(operations):
        found.append(f"{unknown} of {len(operations)} operations have an unknown outcome, over {UNKNOWN_SHARE_MAX:.0%}")
    if not kills:
        found.append("no node was killed")
    if len(operations) < max(OPERATIONS_MIN, OPERATIONS_PER_KEY_MIN * keys):
        found.append(f"only {len(operations)} operations on {keys} keys")
    return found
