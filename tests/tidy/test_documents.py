"""What a document shows as runnable runs. A fenced block whose info string ends in `run` (`sh run`, `python run`) is
executed in an empty directory with the project's commands first on the path; the blocks of one document share it, in order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy import tree

BLOCK = re.compile(r"^```(sh|python) run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK_SECONDS_MAX = 60


def runnable() -> dict[str, list[tuple[str, str]]]:
    found = {name: BLOCK.findall(tree.read(name)) for name in tree.markdown_files()}
    return {name: blocks for name, blocks in found.items() if blocks}


def execute(language: str, code: str, where: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-eu", "-o", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command,
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=BLOCK_SECONDS_MAX,
    )


def test_the_readme_has_something_to_run() -> None:
    assert "README.md" in runnable()


def test_a_failing_block_is_seen(tmp_path: Path) -> None:
    assert execute("sh", "false\ntrue\n", tmp_path).returncode != 0
    assert execute("python", "raise SystemExit(3)", tmp_path).returncode == 3


@pytest.mark.xdist_group("process")
@pytest.mark.parametrize("name", sorted(runnable()))
def test_runs_as_shown(name: str, tmp_path: Path) -> None:
    try:
        for language, code in runnable()[name]:
            done = execute(language, code, tmp_path)
            assert done.returncode == 0, f"{name}:\n{code}\n{done.stdout}\n{done.stderr}"
    finally:
        if (tmp_path / ".tenfold").exists():
            execute("sh", "tenfold down --purge", tmp_path)
