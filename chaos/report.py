"""What a run proved, for people: a few lines for the terminal, and a page of Markdown beside the history."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec

from chaos.checkers.availability import Outage
from chaos.checkers.explain import timeline
from chaos.checkers.linearizability import Verdict
from chaos.checkers.register import describe
from chaos.history import Event, History
from chaos.judge import Judgement, Result

LOST_TOLD_MAX = 50
MEANING = {
    Verdict.OK: "every key is linearizable, and every acknowledged write is there",
    Verdict.VIOLATION: "the cluster broke its promise",
    Verdict.UNKNOWN: "nothing proved wrong, and not everything proved right",
}


def summary(judgement: Judgement, report: Path | None = None) -> str:
    """The verdict and its figures, in a few lines."""
    lines = [f"verdict: {judgement.result.verdict} ({MEANING[judgement.result.verdict]})"]
    lines += [f"  {name:<22} {value}" for name, value in _figures(judgement.result)]
    lines += [f"  weak: {reason}" for reason in judgement.weak_because]
    lines += [f"  key {each.key}: {each.reason}" for each in judgement.violations[:5]]
    lines += [f"  lost: {describe(each.write)}" for each in judgement.durability.lost[:5]]
    lines += [f"  undecided: {each.key}: {each.reason}" for each in judgement.undecided[:5]]
    if judgement.durability.unread:
        lines.append(f"  {len(judgement.durability.unread)} keys were not read back")
    lines.append(f"  {'history':<22} {judgement.result.history}")
    if report is not None:
        lines.append(f"  {'report':<22} {report}")
    return "\n".join(lines)


def _figures(result: Result) -> list[tuple[str, object]]:
    return [
        ("operations", result.operations),
        ("acknowledged writes", f"{result.acknowledged}, {result.acknowledged_lost} lost"),
        ("unknown outcomes", result.unknown),
        ("failed", result.failed),
        ("keys checked", result.keys_checked),
        ("faults", result.faults),
        ("longest without service", f"{result.max_unavailable_ms:.0f} ms (p99 {result.unavailable_p99_ms:.0f} ms)"),
        ("seed", result.seed),
    ]


def write(path: Path, history: History, judgement: Judgement) -> None:
    """The page, as Markdown."""
    path.write_text("\n".join(_page(history, judgement)) + "\n", encoding="utf-8")


def _page(history: History, judgement: Judgement) -> Iterator[str]:
    result = judgement.result
    yield f"# Verdict: {result.verdict}"
    yield ""
    yield f"{MEANING[result.verdict].capitalize()}."
    yield ""
    yield from _table(["figure", "value"], [[name, str(value)] for name, value in _figures(result)])
    yield ""
    for reason in judgement.weak_because:
        yield f"* weak: {reason}"
    yield f"* judge again: `tenfold chaos check {result.history}`"
    yield f"* options: `{msgspec.json.encode(history.header.options).decode()}`"
    yield f"* cluster: `{msgspec.json.encode(history.header.cluster).decode()}`"
    yield from _violations(judgement)
    yield from _losses(judgement)
    yield from _undecided(judgement)
    yield from _service(judgement.outages)
    yield from _faults(history.faults)


def _violations(judgement: Judgement) -> Iterator[str]:
    for finding in judgement.violations:
        yield from ["", f"## Key {finding.key} is not linearizable", "", f"{finding.reason}.", ""]
        yield "The fewest operations found that prove it, times since the start of the run:"
        yield from ["", "```text", *timeline(finding), "```"]


def _losses(judgement: Judgement) -> Iterator[str]:
    lost = judgement.durability.lost
    if not lost:
        return
    yield from ["", f"## {len(lost)} acknowledged writes are lost", ""]
    rows = [[each.write.key, describe(each.write), describe(each.final)] for each in lost[:LOST_TOLD_MAX]]
    yield from _table(["key", "acknowledged", "read after healing"], rows)


def _undecided(judgement: Judgement) -> Iterator[str]:
    if judgement.undecided or judgement.durability.unread:
        yield from ["", "## Undecided", ""]
        yield from (f"* {each.key}: {each.reason}" for each in judgement.undecided)
        yield from (f"* {key}: no final read was answered" for key in judgement.durability.unread)


def _service(outages: list[Outage]) -> Iterator[str]:
    """Time without service: per kill, how many shards noticed and the worst of them."""
    if not outages:
        return
    yield from ["", "## Time without service", ""]
    yield "Per kill, from the last ok before it to the first ok of a later call, over all data shards."
    yield ""
    rows = []
    ordered = sorted(outages, key=lambda each: each.killed_ns)
    for killed_ns, group in groupby(ordered, key=lambda each: each.killed_ns):
        those = sorted(group, key=lambda each: each.milliseconds)
        felt = [f"{each.shard} ({each.milliseconds:.0f})" for each in reversed(those) if each.milliseconds >= 500]
        rows.append(
            [f"{killed_ns / 1e9:.2f}", those[0].node, f"{those[-1].milliseconds:.0f}", ", ".join(felt) or "none"]
        )
    yield from _table(["killed at s", "node", "worst ms", "shards out for 500 ms or more"], rows)


def _faults(faults: list[Event]) -> Iterator[str]:
    yield from ["", "## Faults", ""]
    rows = [
        [f"{each.time / 1e9:.3f}", each.f, each.type, each.node or "", each.error or each.note or ""] for each in faults
    ]
    yield from _table(["at s", "fault", "event", "node", "note"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
