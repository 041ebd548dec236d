"""The import contracts hold, and each really fails on its breach, naming the module."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tidy import tree

PACKAGES = ["proto", "cluster", "node", "client", "chaos"]


def lint_imports(where: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product's Python files alone, for breaking."""
    target = tmp_path_factory.mktemp("tree")
    for name in tree.files():
        if name == "pyproject.toml" or (name.endswith(".py") and not name.startswith("tests/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tree.ROOT / name, target / name)
    return target


def test_contracts_hold() -> None:
    done = lint_imports(tree.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pure_rooms_are_under_contract() -> None:
    contracts = tomllib.loads(tree.read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    pure = next(each for each in contracts if each["id"] == "pure")
    rooms = [
        room
        for room in ("cluster/raft", "cluster/ring", "cluster/membership", "node/machines")
        if (tree.ROOT / room).is_dir()
    ]
    assert set(pure["source_modules"]) == {room.replace("/", ".") for room in rooms}


BREACHES = [
    ("node/machines/kv.py", "import time"),
    ("cluster/raft/core.py", "import random"),
    ("cluster/ring/ring.py", "from os import path"),
    ("cluster/local/__init__.py", "import node.machines"),
    ("client/__init__.py", "import grpc.aio"),
    ("client/__init__.py", "import chaos"),
    ("node/pump.py", "from grpc import aio"),
    ("node/pump.py", "import client"),
    ("node/replica.py", "import node.pump"),
    ("node/transport/__init__.py", "import node.storage"),
    ("cluster/types.py", "import tenfold"),
]


@pytest.mark.parametrize(
    ("path", "line"), BREACHES, ids=[f"{path}-{line.replace(' ', '-')}" for path, line in BREACHES]
)
def test_a_breach_fails_and_is_named(copy: Path, path: str, line: str) -> None:
    target = copy / path
    whole = target.read_text(encoding="utf-8")
    target.write_text(f"{whole}\n{line}\n", encoding="utf-8")
    try:
        done = lint_imports(copy)
    finally:
        target.write_text(whole, encoding="utf-8")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert done.returncode == 1
    assert f"{module} -> " in done.stdout, done.stdout


def test_a_module_of_the_node_without_a_place_fails(copy: Path) -> None:
    stray = copy / "node" / "stray.py"
    stray.write_text('"""Nobody said where it stands."""\n', encoding="utf-8")
    try:
        done = lint_imports(copy)
    finally:
        stray.unlink()
    assert done.returncode == 1
    assert "node.stray" in done.stdout
