"""The catalogue of bugs, what the README says of it, and how it is searched for."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from chaos.bugs.catalogue import CATALOGUE
from chaos.bugs.patch import infected
from chaos.sim.bugs_cli import seeds
from chaos.sim.run import Options, run_seed
from chaos.sim.tastes import TASTES, taste_of

README = Path(__file__).parents[2] / "chaos" / "README.md"


def table() -> list[list[str]]:
    """The rows of the table, without its head."""
    lines = README.read_text().splitlines()
    start = lines.index("| bug | what it does wrong | oracle | taste | seconds |") + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_names_every_bug_and_no_other() -> None:
    told = [(name, what) for name, what, *_ in table()]
    assert told == [(bug.name, bug.what) for bug in CATALOGUE.values()]


def test_the_table_has_the_hints_of_the_catalogue() -> None:
    told = {name: taste for name, _, _, taste, _ in table()}
    assert told == {bug.name: bug.taste for bug in CATALOGUE.values()}


def test_a_hint_names_a_taste() -> None:
    assert {bug.taste for bug in CATALOGUE.values()} <= {"", *(taste.name for taste in TASTES)}


def test_a_search_takes_every_seed_once_and_hinted_ones_first() -> None:
    assert list(islice(seeds(""), 4)) == [1, 2, 3, 4]
    taken = list(islice(seeds("rivals"), 60))
    assert [taste_of(seed).name for seed in taken[:3]] == ["rivals"] * 3
    assert len(set(taken)) == 60
    assert set(range(1, 10)) <= set(taken)


def test_a_flush_that_promises_too_much_is_seen_without_a_crash() -> None:
    with infected(CATALOGUE["flush-covers-later"]):
        result = run_seed(Options(seed=3, duration_s=12.0, kinds=()))
    assert result.verdict == "violation"
    assert "and takes" in result.reasons[0]
