"""What a user is told of the seeds that ran: a line each or now and then a sum, everything of a bad one, and the verdict of all."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec

from chaos.sim.case import Case, again
from chaos.sim.run import SeedResult
from client.cli.output import Exit, note

TAIL_LINES = 60
REASON_LINES = 60
SUM_EVERY_S = 60.0

ROW = (
    "seed",
    "verdict",
    "trace_hash",
    "operations",
    "faults",
    "virtual_s",
    "wall_s",
    "unknown",
    "reasons",
)
"""What the result document holds of each seed."""

CODES = (
    ("crash", Exit.CRASH),
    ("violation", Exit.FAILED),
    ("never-converged", Exit.NEVER_HEALED),
    ("unknown", Exit.UNKNOWN),
    ("ok", Exit.OK),
)
"""The worst first."""


class Told:
    """`case_file`: what was run, if it was a case. `seldom`: good seeds are summed up once a minute."""

    def __init__(self, case_file: str = "", *, seldom: bool = False) -> None:
        self.results: list[SeedResult] = []
        self._case_file = case_file
        self._seldom = seldom
        self._started = self._summed = time.monotonic()

    def tell(self, case: Case, result: SeedResult) -> None:
        self.results.append(msgspec.structs.replace(result, tail=[]))
        good = result.verdict == "ok"
        if not (self._seldom and good):
            told = f"seed {result.seed}: {result.verdict}, {result.operations} operations, {result.faults} faults"
            note(f"{told}, {result.virtual_s:.0f} s in {result.wall_s:.1f} s")
        elif time.monotonic() - self._summed >= SUM_EVERY_S:
            self._summed = time.monotonic()
            note(f"{(self._summed - self._started) / 60:.0f} min: {self.summary()}")
        if not good:
            for line in (*_lines(result.tail)[-TAIL_LINES:], *_lines(result.reasons)[:REASON_LINES]):
                note(f"  {line}")
            note(f"  again: {self._again(case)}")
        expected = case.expected
        if expected is not None and expected.verdict != result.verdict:
            note(f"  the case expects {expected.verdict}: {expected.reason}")
        elif expected is not None and expected.trace_hash != result.trace_hash:
            note(
                "  the verdict is the expected one, the trace is another: the code has changed since the case was written"
            )

    def _again(self, case: Case) -> str:
        return f"tenfold sim run --case {self._case_file}" if self._case_file else again(case)

    def document(self) -> dict[str, Any]:
        """The result as JSON knows it."""
        found: dict[str, Any] = {
            "verdict": self.worst(),
            "seeds": [{name: getattr(result, name) for name in ROW} for result in self.results],
            "ratio": self._ratio(),
        }
        if len(self.results) == 1:
            found["trace_hash"] = self.results[0].trace_hash
        return found

    def worst(self) -> str:
        verdicts = {result.verdict for result in self.results}
        return next(name for name, _ in CODES if name in verdicts)

    def exit_code(self) -> int:
        return int(dict(CODES)[self.worst()])

    def summary(self) -> str:
        results = self.results
        counts = Counter(result.verdict for result in results)
        bad = "".join(f", {counts[name]} {name}" for name, _ in CODES if name != "ok" and counts[name])
        operations, faults = (sum(getattr(result, name) for result in results) for name in ("operations", "faults"))
        virtual_s = sum(result.virtual_s for result in results)
        hours = f"{virtual_s / 3600:.1f} virtual hours, " if virtual_s >= 3600 else ""
        return (
            f"{self.worst()}: {counts['ok']} of {len(results)} seeds ok{bad}; {hours}{operations} operations, "
            f"{faults} faults; {self._ratio():g} times real time"
        )

    def _ratio(self) -> float:
        """Of one process."""
        wall_s = sum(result.wall_s for result in self.results)
        return round(sum(result.virtual_s for result in self.results) / wall_s, 1) if wall_s else 0.0


def _lines(texts: list[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines()]
