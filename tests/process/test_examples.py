"""The examples do what they say: on a cluster that is there, and on one of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.kv_cluster import COMMAND_TIMEOUT_S, REPOSITORY, cluster_of_three

EXAMPLES = {
    "counter": "1000 of 1000 visits counted, 0 in doubt",
    "inventory": "10 of 25 customers got a lamp, 10 orders, 0 left",
    "tail": "5 events, then 20 more from the token; 25 were published",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster_of_three(tmp_path_factory.mktemp("examples") / "cluster") as made:
        yield made


def run_example(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"client.examples.{name}", *arguments]
    ended = subprocess.run(command, capture_output=True, timeout=COMMAND_TIMEOUT_S, cwd=REPOSITORY, text=True)
    assert ended.returncode == 0 and not ended.stderr, ended
    return ended.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_on_a_cluster_and_again(name: str, directory: Path) -> None:
    for _ in range(2):
        assert run_example(name, "--dir", str(directory)).startswith(EXAMPLES[name])


def test_an_example_starts_a_cluster_of_its_own() -> None:
    assert run_example("counter").startswith(EXAMPLES["counter"])


def test_every_example_is_tested() -> None:
    programs = {path.stem for path in (REPOSITORY / "client" / "examples").glob("*.py")}
    assert programs - {"__init__", "where"} == EXAMPLES.keys()
