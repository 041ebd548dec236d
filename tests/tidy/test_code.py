"""Every Python file keeps the rules of tests/tidy/rules.py, and every rule sees its breach."""

from __future__ import annotations

import ast

import pytest

from tests.tidy import rules, tree


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: rules.Rule) -> None:
    wrong = [line for path in tree.python_files() for line in rule(path, tree.syntax(path))]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_file_eats_the_house() -> None:
    lines = {path: tree.read(path).count("\n") for path in tree.python_files()}
    long = [f"{path}: {count} lines" for path, count in lines.items() if count > rules.FILE_LINES_MAX]
    assert not long, f"split by role or step: {long}"


LONG = "def f():\n" + "    x = 1\n" * rules.FUNCTION_LINES_MAX

BREACHES = [
    (rules.short_names, "node/utils.py", ""),
    (rules.short_names, "client/common/x.py", ""),
    (rules.short_functions, "node/x.py", LONG),
    (rules.docstrings, "node/x.py", "import ast\n"),
    (rules.no_module_state, "node/x.py", "seen = []\n"),
    (rules.no_module_state, "node/x.py", "cache: dict[str, int] = dict()\n"),
    (rules.no_module_state, "node/x.py", "TABLE = {}\ndef f():\n    TABLE['a'] = 1\n"),
    (rules.no_module_state, "node/x.py", "NAMES = set()\ndef f():\n    NAMES.add(1)\n"),
    (rules.no_module_state, "node/x.py", "COUNT = 0\ndef f():\n    global COUNT\n    COUNT += 1\n"),
    (
        rules.one_loop,
        "node/pump.py",
        "import asyncio\nasync def f():\n    async with asyncio.TaskGroup():\n        pass\n",
    ),
    (rules.one_loop, "node/pump.py", "import asyncio\nasync def f(t):\n    await asyncio.wait(t)\n"),
    (rules.one_loop, "client/x.py", "from asyncio import as_completed\n"),
    (rules.one_loop, "node/x.py", "import threading\n"),
    (rules.one_loop, "chaos/x.py", "from concurrent.futures import ThreadPoolExecutor\n"),
    (rules.one_loop, "node/x.py", "def f(loop):\n    return loop.run_in_executor(None, print)\n"),
    (rules.files_in_their_place, "node/pump.py", "def f():\n    return open('x')\n"),
    (rules.files_in_their_place, "client/x.py", "from pathlib import Path\nPath('x').read_text()\n"),
    (rules.files_in_their_place, "node/x.py", "import os\nos.open('x', 0)\n"),
    (rules.no_sleeping_tests, "tests/x.py", "import time\ntime.sleep(1)\n"),
    (rules.no_sleeping_tests, "tests/x.py", "import time\nwhile True:\n    time.sleep(2)\n"),
    (rules.no_sleeping_tests, "tests/x.py", "import time\nclass TestX:\n    def test(self):\n        time.sleep(1)\n"),
    (rules.no_sleeping_tests, "tests/x.py", "from asyncio import sleep\nasync def f(s):\n    await sleep(s)\n"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BREACHES, ids=lambda value: getattr(value, "__name__", None))
def test_rule_sees_its_breach(rule: rules.Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source)))


KEPT = [
    (rules.short_functions, "node/x.py", LONG.replace("    x = 1\n", "", 1)),
    (rules.docstrings, "node/__init__.py", ""),
    (rules.no_module_state, "node/x.py", "TABLE = {1: 2}\n__all__ = ['TABLE']\n"),
    (rules.one_loop, "node/storage/disk.py", "import threading\n"),
    (rules.one_loop, "node/x.py", "import asyncio\nasync def f(t):\n    await asyncio.wait_for(t, 1)\n"),
    (rules.files_in_their_place, "node/storage/disk.py", "def f():\n    return open('x')\n"),
    (rules.files_in_their_place, "node/storage_floor.py", "def f(disk):\n    return disk.open('x')\n"),
    (rules.no_sleeping_tests, "tests/x.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n"),
    (rules.no_sleeping_tests, "tests/x.py", "import time\nwhile not done():\n    time.sleep(0.02)\n"),
    (rules.no_sleeping_tests, "tests/x.py", "class Slow:\n    async def sync(self):\n        await sleep(self.s)\n"),
]


@pytest.mark.parametrize(("rule", "path", "source"), KEPT, ids=lambda value: getattr(value, "__name__", None))
def test_rule_leaves_good_code_alone(rule: rules.Rule, path: str, source: str) -> None:
    assert not list(rule(path, ast.parse(source)))
