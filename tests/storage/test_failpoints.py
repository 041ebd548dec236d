"""Failpoints are off unless the variable names one, count their hits, and kill for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.storage import failpoints
from node.storage.failpoints import NAMES, VARIABLE, armed

PROGRAM = """
from node.storage.failpoints import failpoint
for n in range(5):
    print(n, flush=True)
    failpoint("sync.before")
    failpoint("sync.after")
"""


def test_they_are_off_here() -> None:
    assert failpoints.failpoint is failpoints.off and len(set(NAMES)) == len(NAMES)


def test_the_nth_hit_of_the_name_acts_once() -> None:
    acted: list[int] = []
    hit = armed("sync.before:3", lambda: acted.append(1))
    for _ in range(10):
        hit("sync.after")
    hit("sync.before")
    hit("sync.before")
    assert not acted
    hit("sync.before")
    hit("sync.before")
    assert acted == [1]


@pytest.mark.parametrize("setting", ["nothing", "sync.before:0", "sync.before:x", "sync.before:-1", ":2"])
def test_a_setting_that_names_no_failpoint_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        armed(setting)


@pytest.mark.parametrize("setting, lines", [("sync.after", 1), ("sync.before:4", 4), ("append.torn", 5)])
def test_the_process_dies_there(setting: str, lines: int) -> None:
    environment = {**os.environ, VARIABLE: setting}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == (-signal.SIGKILL if lines < 5 else 0)
    assert len(run.stdout.split()) == lines


def test_every_name_is_a_place_in_the_code_and_every_place_has_its_name() -> None:
    sources = [path.read_text() for path in Path(failpoints.__file__).parents[1].rglob("*.py")]
    places = {name for source in sources for name in re.findall(r'failpoint\("([^"]+)"\)', source)}
    assert places == set(NAMES)
