"""A run as data: its options, its faults, the bug that is put in, and how it ended.

`sim shrink` writes one and `sim run --case` repeats it exactly; worker processes are handed them too. The file is JSON with
a format number; a newer format is refused.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from chaos.sim.knobs import CLIENTS
from chaos.sim.run import Options, SeedResult, run_seed
from chaos.sim.schedule import KNOWN, Fault, words_for
from cluster.errors import invalid

FORMAT = 1


class Expected(msgspec.Struct, frozen=True):
    """How the run ended when the case was written. Another trace hash with the same verdict: the code has changed since."""

    verdict: str
    reason: str = ""
    trace_hash: str = ""


class Case(msgspec.Struct, frozen=True):
    """`bug` is a name of the catalogue; it is in the code only while the case runs."""

    options: Options
    bug: str = ""
    expected: Expected | None = None

    def run(self) -> SeedResult:
        """Runs it here and now. It leaves nothing behind."""
        with _infection(self.bug):
            return run_seed(self.options)


def _infection(bug: str) -> Any:
    if not bug:
        return nullcontext()
    from chaos.bugs.catalogue import CATALOGUE
    from chaos.bugs.patch import infected

    if bug not in CATALOGUE:
        raise invalid("bug", f"{bug!r}, must be one of {', '.join(sorted(CATALOGUE))}")
    return infected(CATALOGUE[bug])


def ended(result: SeedResult) -> Expected:
    """What a case says of a result. The reason is its first line."""
    reason = result.reasons[0].splitlines()[0] if result.reasons else ""
    return Expected(result.verdict, reason, result.trace_hash)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The case as it lies on disk, the seed and the faults where a reader looks for them."""

    format: int
    seed: int
    options: dict[str, Any]
    schedule: list[dict[str, Any]] | None = None
    bug: str = ""
    expected: Expected | None = None


def write(case: Case, path: Path) -> None:
    """OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(_encode(case), indent=2) + b"\n")


def _encode(case: Case) -> bytes:
    options = msgspec.to_builtins(case.options)
    seed, schedule = options.pop("seed"), case.options.schedule
    options.pop("schedule", None)
    faults = None if schedule is None else [each._asdict() for each in schedule]
    return msgspec.json.encode(_File(FORMAT, seed, options, faults, case.bug, case.expected))


def read(path: Path) -> Case:
    """TenfoldError InvalidArgument names what is wrong."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if file.format != FORMAT:
            raise invalid("case", f"{path}: format {file.format}, this program reads {FORMAT}")
        faults = None if file.schedule is None else tuple(_fault(row) for row in file.schedule)
        options = msgspec.convert({**file.options, "seed": file.seed}, type=Options)
    except (OSError, TypeError, msgspec.MsgspecError) as error:
        raise invalid("case", f"{path}: {error}") from None
    return Case(msgspec.structs.replace(options, schedule=faults), file.bug, file.expected)


def _fault(row: dict[str, Any]) -> Fault:
    fault = msgspec.convert([row.get(name) for name in Fault._fields], type=Fault)
    if fault.kind not in KNOWN or set(row) != set(Fault._fields):
        raise TypeError(f"{row}: no fault that is known here")
    return fault


def in_words(fault: Fault) -> str:
    lasts = f" for {fault.for_s:g} s" if fault.for_s else ""
    return f"{fault.at_s:9.3f} s  {fault.kind}{lasts}"


def again(case: Case) -> str:
    """The command that repeats a run whose schedule is drawn."""
    options = case.options
    kinds = words_for(options.kinds)
    words = ["tenfold sim run", f"--seed {options.seed}", f"--minutes {options.duration_s / 60:g}", f"--faults {kinds}"]
    words += [f"--nodes {options.nodes}"] if options.nodes else []
    words += [f"--workload {options.workload}"] if options.workload != "kv" else []
    words += [f"--data-shards {options.shards}"] if options.shards else []
    words += [f"--clients {options.clients}"] if options.clients != CLIENTS else []
    words += [f"--bug {case.bug}"] if case.bug else []
    return " ".join(words)


def tell(case: Case, path: Path) -> str:
    """The case for people: what is left, how it ends, and how to see it again."""
    options, expected = case.options, case.expected
    assert expected is not None and options.schedule is not None
    lines = [f"{expected.verdict}: {expected.reason}"]
    lines.append(
        f"seed {options.seed}, {options.duration_s:g} s, {options.clients} clients, {len(options.schedule)} faults:"
    )
    lines += [in_words(fault) for fault in options.schedule]
    return "\n".join([*lines, f"again: tenfold sim run --case {path}"])


def document(case: Case, path: Path, tries: int) -> dict[str, Any]:
    """The same as JSON knows it."""
    found: dict[str, Any] = msgspec.json.decode(_encode(case))
    return {**found, "case": str(path), "tries": tries}
