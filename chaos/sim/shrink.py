"""From a failing run to the little of it that still fails the same way.

Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002) over the faults, which are data
with draws of their own, so that leaving one out changes no other; then the time and the clients are cut, and the faults once
more, until none can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from chaos.sim.bugs_cli import oracle_of
from chaos.sim.case import Case, ended
from chaos.sim.run import Options, SeedResult
from chaos.sim.schedule import Fault, draw_schedule

TAIL_S = 0.5
"""A run goes on so long after what it is known to need."""
DURATION_S_MIN = 1.0

Faults = tuple[Fault, ...]


def _way(result: SeedResult) -> tuple[str, str]:
    """In which it ended: the verdict, and which oracle spoke first."""
    return result.verdict, oracle_of(result.reasons[0]) if result.reasons else ""


class NothingToShrink(Exception):
    """The run ends ok."""


class Shrinker:
    """`tell` is given progress for people. `tries_max` bounds the runs; what was reached by then is the result."""

    def __init__(
        self,
        case: Case,
        tell: Callable[[str], None],
        tries_max: int,
        run: Callable[[Case], SeedResult] = Case.run,
    ) -> None:
        options = case.options
        schedule = options.schedule
        if schedule is None:
            schedule = tuple(draw_schedule(options.seed, options.duration_s, options.kinds))
        self.tries = 0
        self._case = msgspec.structs.replace(
            case, options=msgspec.structs.replace(options, schedule=schedule, kinds=())
        )
        self._run = run
        self._tell = tell
        self._tries_max = tries_max
        self._known: dict[bytes, bool] = {}
        self._result: SeedResult

    def run(self) -> Case:
        """The smallest case found, with how it ends. NothingToShrink."""
        self._result = self._run(self._case)
        self.tries += 1
        if self._result.verdict == "ok":
            raise NothingToShrink
        self._tell(f"{self._result.verdict} after {self._result.virtual_s:.1f} s with {len(self._faults)} faults")
        before = -1
        while before != len(self._faults) and self.tries < self._tries_max:
            before = len(self._faults)
            self._shorten()
            self._leave_out()
            self._thin_out()
        return msgspec.structs.replace(self._case, expected=ended(self._result))

    @property
    def _faults(self) -> Faults:
        return self._case.options.schedule or ()

    def _fails(self, what: str, options: Options) -> bool:
        """Whether it fails the same way with these options; then they are kept."""
        key = msgspec.json.encode(options)
        if key in self._known or self.tries >= self._tries_max:
            return False
        self.tries += 1
        case = msgspec.structs.replace(self._case, options=options)
        result = self._run(case)
        same = self._known[key] = _way(result) == _way(self._result)
        if same:
            self._case, self._result = case, result
            self._tell(f"run {self.tries}: {what}: fails the same way after {result.virtual_s:.1f} s")
        else:
            self._tell(f"run {self.tries}: {what}: {result.verdict}")
        return same

    # -- what can go ---------------------------------------------------------------------------------------------------

    def _shorten(self) -> None:
        """A run that was ended by what it found needs nothing that came after; else time is cut as long as that goes."""
        options, end_s = self._case.options, self._result.virtual_s
        if end_s + TAIL_S < options.duration_s:
            self._fails_within(end_s + TAIL_S)
        while (shorter := round(self._case.options.duration_s * 0.6, 1)) >= DURATION_S_MIN:
            if not self._fails_within(shorter):
                return

    def _fails_within(self, duration_s: float) -> bool:
        faults = tuple(each for each in self._faults if each.at_s < duration_s)
        options = msgspec.structs.replace(self._case.options, duration_s=round(duration_s, 1), schedule=faults)
        return self._fails(f"{duration_s:.1f} s, {len(faults)} faults", options)

    def _with(self, faults: Sequence[Fault]) -> bool:
        return self._fails(f"{len(faults)} faults", msgspec.structs.replace(self._case.options, schedule=tuple(faults)))

    def _leave_out(self) -> None:
        """Delta debugging: chunks alone, the last first, since what fails is mostly near the end; then all but a chunk."""
        chunks = 2
        while len(self._faults) >= 2 and self.tries < self._tries_max:
            faults = self._faults
            size = -(-len(faults) // chunks)
            parts = [faults[at : at + size] for at in range(0, len(faults), size)]
            if (chunks == 2 or size > 1) and any(self._with(part) for part in reversed(parts)):
                chunks = 2
                continue
            rests = ([each for part in parts if part is not left for each in part] for left in parts)
            if len(parts) > 2 and any(self._with(rest) for rest in rests):
                chunks = max(2, chunks - 1)
            elif size == 1:
                break
            else:
                chunks = min(len(faults), 2 * chunks)
        if len(self._faults) == 1:
            self._with(())

    def _thin_out(self) -> None:
        """Fewer clients."""
        for clients in (1, 2, 4):
            fewer = msgspec.structs.replace(self._case.options, clients=clients)
            if clients < self._case.options.clients and self._fails(f"{clients} clients", fewer):
                return
