"""From a history of locks to a verdict, and to what people are told of it.

    violation  a law of locks is broken, a fenced register is not linearizable, or an acknowledged write is lost
    unknown    nothing proved wrong, but a register could not be decided or was not read back, or no lock was ever taken
    ok         every law holds for all that is known

Weak, as other runs, with over 2% unknown outcomes, without a fault, or with too few acquisitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chaos.checkers import lock
from chaos.checkers.linearizability import STEPS_MAX, Verdict
from chaos.checkers.lock import Expiry, LockFinding
from chaos.history import Event, History
from chaos.judge import UNKNOWN_SHARE_MAX, Judgement, judge

WORKLOAD = "lock"
"""What the header of such a history says under `workload`."""
FAULTS = frozenset({"kill", "pause", "kill-holder", "pause-holder"})
ACQUISITIONS_MIN = 300
TOLD_MAX = 20
MEANING = {
    Verdict.OK: "every lock had its holders one after the other, and no stale write was accepted",
    Verdict.VIOLATION: "the cluster broke its promise",
    Verdict.UNKNOWN: "nothing proved wrong, and not everything proved right",
}


class LockResult(msgspec.Struct):
    """What `--json` prints. `acquisitions` are grants that were answered; `acknowledged` and what follows are of the fenced registers;
    `faults` are kills and pauses of nodes and holders; `expiry_ms` is null where no lease ran out."""

    verdict: Verdict
    operations: int
    acquisitions: int
    stale_tokens_accepted: int
    overlaps: int
    expiry_ms: Expiry | None
    acknowledged: int
    unknown: int
    failed: int
    acknowledged_lost: int
    linearizable: bool | None
    keys_checked: int
    names_checked: int
    waiters_checked: int
    violations: int
    faults: int
    max_unavailable_ms: float
    unavailable_p99_ms: float
    seed: int
    history: str
    weak: bool


@dataclass(frozen=True)
class LockJudgement:
    result: LockResult
    finding: LockFinding
    registers: Judgement
    weak_because: list[str]


def is_of_locks(history: History) -> bool:
    return history.header.options.get("workload") == WORKLOAD


def judge_locks(history: History, path: Path, steps_max: int = STEPS_MAX) -> LockJudgement:
    """HistoryError where it is not one of this model."""
    finding = lock.check(history)
    registers = judge(lock.registers(history), path, steps_max)
    kept = registers.result
    operations = len(history.operations)
    unknown = sum(each.type == "info" for each in history.operations)
    faults = _faults(history.faults)
    weak = []
    if unknown > UNKNOWN_SHARE_MAX * operations:
        weak.append(f"{unknown} of {operations} operations have an unknown outcome, over {UNKNOWN_SHARE_MAX:.0%}")
    if not faults:
        weak.append("no fault was injected")
    if finding.acquisitions < ACQUISITIONS_MIN:
        weak.append(f"only {finding.acquisitions} acquisitions")
    result = LockResult(
        verdict=_verdict(finding, kept.verdict),
        operations=operations,
        acquisitions=finding.acquisitions,
        stale_tokens_accepted=finding.stale_tokens_accepted,
        overlaps=finding.overlaps,
        expiry_ms=finding.expiry,
        acknowledged=kept.acknowledged,
        unknown=unknown,
        failed=sum(each.type == "fail" for each in history.operations),
        acknowledged_lost=kept.acknowledged_lost,
        linearizable=kept.linearizable,
        keys_checked=kept.keys_checked,
        names_checked=finding.names,
        waiters_checked=finding.waiters,
        violations=len(finding.problems),
        faults=len(faults),
        max_unavailable_ms=kept.max_unavailable_ms,
        unavailable_p99_ms=kept.unavailable_p99_ms,
        seed=history.header.seed,
        history=str(path),
        weak=bool(weak),
    )
    return LockJudgement(result, finding, registers, weak)


def _faults(events: list[Event]) -> list[Event]:
    return [event for event in events if event.f in FAULTS and event.type == "invoke"]


def _verdict(finding: LockFinding, registers: Verdict) -> Verdict:
    if finding.problems or registers is Verdict.VIOLATION:
        return Verdict.VIOLATION
    return (
        Verdict.UNKNOWN
        if registers is Verdict.UNKNOWN or not finding.acquisitions or not finding.watched
        else Verdict.OK
    )


# -- for people --------------------------------------------------------------------------------------------------------


def summary(judgement: LockJudgement, report: Path | None = None) -> str:
    """The verdict and its figures, in a few lines."""
    result = judgement.result
    lines = [f"verdict: {result.verdict} ({MEANING[result.verdict]})"]
    lines += [f"  {name:<22} {value}" for name, value in _figures(result)]
    lines += [f"  weak: {reason}" for reason in judgement.weak_because]
    lines += list(_wrong(judgement, 5))
    lines.append(f"  {'history':<22} {result.history}")
    if report is not None:
        lines.append(f"  {'report':<22} {report}")
    return "\n".join(lines)


def _figures(result: LockResult) -> list[tuple[str, object]]:
    expiry = result.expiry_ms
    told = (
        f"p50 {expiry.p50:.0f} ms, p99 {expiry.p99:.0f} ms, max {expiry.max:.0f} ms" if expiry else "no lease ran out"
    )
    return [
        ("operations", result.operations),
        (
            "acquisitions",
            f"{result.acquisitions} of {result.names_checked} names, {result.waiters_checked} after a wait",
        ),
        ("overlaps", result.overlaps),
        ("stale tokens accepted", result.stale_tokens_accepted),
        ("free after its lease", told),
        ("acknowledged writes", f"{result.acknowledged}, {result.acknowledged_lost} lost"),
        ("unknown outcomes", result.unknown),
        ("failed", result.failed),
        ("faults", result.faults),
        ("longest without service", f"{result.max_unavailable_ms:.0f} ms (p99 {result.unavailable_p99_ms:.0f} ms)"),
        ("seed", result.seed),
    ]


def _wrong(judgement: LockJudgement, most: int) -> Iterator[str]:
    for problem in judgement.finding.problems[:most]:
        yield f"  {problem.law}: {problem.name}: {problem.text}"
    for each in judgement.registers.violations[:most]:
        yield f"  key {each.key}: {each.reason}"
    for lost in judgement.registers.durability.lost[:most]:
        yield f"  lost: {lost}"
    for each in judgement.registers.undecided[:most]:
        yield f"  undecided: {each.key}: {each.reason}"


def write(path: Path, history: History, judgement: LockJudgement) -> None:
    """The page, as Markdown."""
    path.write_text("\n".join(_page(history, judgement)) + "\n", encoding="utf-8")


def _page(history: History, judgement: LockJudgement) -> Iterator[str]:
    result = judgement.result
    yield from [f"# Verdict: {result.verdict}", "", f"{MEANING[result.verdict].capitalize()}.", ""]
    yield from ["| figure | value |", "|---|---|"]
    yield from (f"| {name} | {value} |" for name, value in _figures(result))
    yield ""
    yield from (f"* weak: {reason}" for reason in judgement.weak_because)
    yield f"* judge again: `tenfold chaos check {result.history}`"
    yield f"* options: `{msgspec.json.encode(history.header.options).decode()}`"
    yield from ["", "## What is wrong", ""]
    yield from ([f"*{line}" for line in _wrong(judgement, TOLD_MAX)] or ["Nothing."])
    yield from [
        "",
        "## Leases that ran out",
        "",
        "Milliseconds from the end of the last ttl until the lock was free or another's:",
        "",
    ]
    yield from _histogram(judgement.finding.expiries)
    yield from ["", "## Faults", "", "| at s | fault | event | node |", "|---|---|---|---|"]
    for event in history.faults:
        yield f"| {event.time / 1e9:.3f} | {event.f} | {event.type} | {event.node or ''} |"


def _histogram(expiries: list[float]) -> Iterator[str]:
    """The distribution, drawn with characters."""
    if not expiries:
        yield "None."
        return
    bounds = (0, 25, 50, 100, 150, 200, 250, 500, 1000, 2000, 5000)
    yield "```text"
    for low, high in zip((*bounds,), (*bounds[1:], float("inf")), strict=True):
        count = sum(low <= each < high for each in expiries)
        yield f"{low:>6} .. {high:<6g} {count:>6} {'#' * round(50 * count / len(expiries))}"
    early = sum(each < 0 for each in expiries)
    yield from ([f" below 0       {early:>6}"] if early else [])
    yield "```"
