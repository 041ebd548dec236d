"""The floor of the benchmark runs the real log and tells what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_it_prints_one_json_document_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node.storage.floor", "--seconds", "0.3", "--dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(run.stdout)
    assert found["operations_per_s"] >= 100 * found["rounds_per_s"] * 0.99 > 0 and found["batch"] == 100
    assert 116 < found["bytes_per_operation"] < 200
    assert os.listdir(tmp_path) == []


def test_a_senseless_duration_is_refused() -> None:
    command = [sys.executable, "-m", "node.storage.floor", "--seconds", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "--seconds" in run.stderr
