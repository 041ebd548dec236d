"""The catalogue of bugs and what the README says of it."""

from __future__ import annotations

from pathlib import Path

from chaos.bugs.catalogue import CATALOGUE

README = Path(__file__).parents[2] / "chaos" / "README.md"


def table() -> list[list[str]]:
    """The rows of the table, without its head."""
    lines = README.read_text().splitlines()
    start = lines.index("| bug | what it does wrong | oracle | seed | seconds |") + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_names_every_bug_and_no_other() -> None:
    told = [(name, what) for name, what, *_ in table()]
    assert told == [(bug.name, bug.what) for bug in CATALOGUE.values()]


def test_the_table_has_the_seeds_of_the_catalogue() -> None:
    told = {name: seed for name, _, _, seed, _ in table()}
    assert told == {bug.name: str(bug.seed) if bug.seed else "" for bug in CATALOGUE.values()}
