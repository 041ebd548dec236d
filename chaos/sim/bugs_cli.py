"""`tenfold sim bugs`: puts one bug after the other into the code and demands that seeds find it.

A bug counts as found when a seed convicts the code with it and acquits the code without it; a run that only fails to converge
convicts too. Seeds are 1, 2, 3 and so on, where most are of the taste that the bug hints at, which is a matter of speed alone
(`--from-one` leaves hints out).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from client.cli.output import Exit, Output, note
from cluster.errors import invalid

if TYPE_CHECKING:
    from chaos.bugs.patch import Bug
    from chaos.sim.case import Case
    from chaos.sim.run import SeedResult

DURATION_S = 12.0
CONVICTING = frozenset({"violation", "never-converged"})
SECONDS_MAX = 3600.0
JOBS_MAX = 64
OTHERS_EVERY = 4
"""One seed in so many is the next of any taste, where a bug hints at one."""

ORACLES = (
    ("two votes", "one vote a term"),
    ("two leaders", "one leader a term"),
    ("broken word", "acknowledgements are kept"),
    ("unsafe commit", "commits are safe"),
    ("incomplete leader", "leader completeness"),
    ("logs do not match", "log matching"),
    ("a read of the past", "reads are recent"),
    ("an early read", "reads are recent"),
    ("a lease that is over", "reads are recent"),
    ("two leases", "one lease at a time"),
    ("has lost what it held for durable", "durable is durable"),
    ("has quarantined", "no false alarm"),
    (" differ: ", "one digest at one index"),
    ("applies", "one entry an index"),
    ("goes back", "commit never goes back"),
    ("two increments", "counters"),
    ("counter/", "counters"),
    ("ttl/", "expiry"),
    ("the watch", "watch"),
    ("a stale read", "age of stale reads"),
    ("has answers", "one answer a sequence"),
    ("lock, ", "laws of locks"),
    ("lost: ", "durability"),
    ("changes a key twice", "invariants"),
    ("key ", "linearizability"),
    ("after healing", "convergence"),
    ("after reading back", "watch"),
    ("ended by itself", "assertions of the product"),
)
"""What a reason says, and whose word that is; the first that fits. The rest is `invariants`."""


class Finding(msgspec.Struct):
    """`seconds` of searching; `reason` is the first thing the oracle said."""

    name: str
    what: str
    found: bool
    seed: int | None
    seconds: float
    oracle: str
    reason: str


def bugs(
    only: Annotated[str, typer.Option(help="Only these bugs, separated by commas.")] = "",
    seconds: Annotated[
        float,
        typer.Option(
            help="How long to search for each: of one core, or, with several jobs, of the clock.",
            min=1.0,
            max=SECONDS_MAX,
        ),
    ] = 60.0,
    jobs: Annotated[int, typer.Option(help="Seeds at a time, each in a process.", min=1, max=JOBS_MAX)] = 1,
    from_one: Annotated[bool, typer.Option("--from-one", help="Seeds 1, 2, 3 and so on, without any hint.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")] = False,
) -> None:
    """Search for every bug of the catalogue. What is not found is a hole in the simulator.

    Exit code 0: all were found; 1: some were not.
    """
    findings = []
    honest = Honest(jobs)
    for bug in chosen(only):
        sought = bug._replace(taste="") if from_one else bug
        finding = search(sought, seconds, jobs=jobs, honest=honest)
        findings.append(finding)
        told = f"seed {finding.seed}, {finding.oracle}" if finding.found else "NOT FOUND"
        note(f"{bug.name}: {told}, {finding.seconds:.1f} s")
    missing = [each.name for each in findings if not each.found]
    document = {"bugs": msgspec.to_builtins(findings), "found": len(findings) - len(missing), "of": len(findings)}
    columns = ("bug", "what it does wrong", "found", "seed", "seconds", "oracle")
    rows = [(each.name, each.what, _yes(each.found), each.seed or "", each.seconds, each.oracle) for each in findings]
    below = f"{len(findings) - len(missing)} of {len(findings)} found"
    Output(json).table(document, columns, rows, below if not missing else f"{below}; missing: {', '.join(missing)}")
    raise typer.Exit(Exit.FAILED if missing else Exit.OK)


def _yes(found: bool) -> str:
    return "yes" if found else "NO"


def chosen(only: str) -> list[Bug]:
    """By their names, in the order of the catalogue; all where none is named. InvalidArgument."""
    from chaos.bugs.catalogue import CATALOGUE

    names = [name for name in only.split(",") if name]
    if unknown := [name for name in names if name not in CATALOGUE]:
        raise invalid("only", f"{unknown[0]!r}, must be some of {', '.join(CATALOGUE)}")
    return [bug for bug in CATALOGUE.values() if not names or bug.name in names]


class Honest:
    """Whether the code without any bug passes a seed; asked once for each."""

    def __init__(self, jobs: int = 1) -> None:
        self._known: dict[tuple[int, str, str], bool] = {}
        self._jobs = jobs

    def passes(self, seed: int, bug: Bug) -> bool:
        known = (seed, bug.faults, bug.workload)
        if known not in self._known:
            self._known[known] = _case(seed, bug, infected=False).run().verdict == "ok"
            if not self._known[known]:
                note(f"seed {seed} convicts the code as it is")
        return self._known[known]


def search(bug: Bug, seconds: float, *, jobs: int = 1, honest: Honest) -> Finding:
    """Seed after seed until one convicts, as long as `seconds` allow to begin another: of one core, or, with several `jobs`, of
    the clock."""
    from chaos.sim.jobs import run_cases

    clock = time.process_time if jobs == 1 else time.monotonic
    started = clock()
    convicted: list[SeedResult] = []
    spent = 0.0  # on the code without the bug, which is no part of the search

    def cases() -> Iterator[Case]:
        for seed in seeds(bug.taste):
            if convicted or clock() - started - spent >= seconds:
                return
            yield _case(seed, bug)

    def tell(case: Case, result: SeedResult) -> None:
        nonlocal spent
        if result.verdict not in CONVICTING or convicted:
            return
        check_patch(bug, result.reasons)
        began = clock()
        if honest.passes(result.seed, bug):
            convicted.append(result)
        spent += clock() - began

    run_cases(cases(), jobs, tell)
    took = round(clock() - started - spent, 1)
    if not convicted:
        return Finding(bug.name, bug.what, False, None, took, "", "")
    reason = _first(convicted[0].reasons)
    return Finding(bug.name, bug.what, True, convicted[0].seed, took, oracle_of(reason), reason)


def seeds(taste: str) -> Iterator[int]:
    """Each seed once; those of `taste` come earlier than it is their turn."""
    from chaos.sim.tastes import taste_of

    hinted = (seed for seed in count(1) if taste_of(seed).name == taste)
    others = (seed for seed in count(1) if taste_of(seed).name != taste)
    for turn in count(1):
        yield next(others if not taste or turn % OTHERS_EVERY == 0 else hinted)


def _case(seed: int, bug: Bug, *, infected: bool = True) -> Case:
    """Under the load and the faults that the bug is searched with."""
    from chaos.sim.case import Case
    from chaos.sim.run import Options
    from chaos.sim.schedule import kinds_in

    kinds = kinds_in(bug.faults.split(","))
    options = Options(seed=seed, duration_s=DURATION_S, kinds=kinds, workload=bug.workload)
    return Case(options, bug.name if infected else "")


def check_patch(bug: Bug, reasons: Sequence[str]) -> None:
    """A patch that no longer fits the code fails by itself, which finds nothing. AssertionError."""
    for reason in reasons:
        last = reason.rstrip().rpartition("\n")[2]
        misfit = last.startswith(("TypeError", "AttributeError", "NameError", "ImportError"))
        assert not (misfit and "chaos/bugs/" in reason), f"the patch of {bug.name} does not fit the code: {reason}"


def _first(reasons: Sequence[str]) -> str:
    """In one line, without where it was raised."""
    if not reasons:
        return ""
    head, _, rest = reasons[0].partition("\n")
    last = rest.rstrip().rpartition("\n")[2]
    return f"{head[:200]}" if not last else f"{head.partition(':')[0][:100]}: {last[:200]}"


def oracle_of(reason: str) -> str:
    return next((oracle for sign, oracle in ORACLES if sign in reason), "invariants")


def rows(document: dict[str, Any]) -> Iterator[str]:
    """The table of the README from a result document."""
    from chaos.bugs.catalogue import CATALOGUE

    yield "| bug | what it does wrong | oracle | taste | seconds |"
    yield "|---|---|---|---|---|"
    for each in document["bugs"]:
        oracle = each["oracle"] if each["found"] else "not found"
        taste = CATALOGUE[each["name"]].taste
        yield f"| {each['name']} | {each['what']} | {oracle} | {taste} | {each['seconds']} |"
