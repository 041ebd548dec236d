"""What every test shares: examples that repeat, and one process cluster at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("tenfold", derandomize=True, deadline=None)
settings.load_profile("tenfold")

PROCESS_TESTS = Path(__file__).parent / "process"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start real clusters run on one worker, one after the other: two clusters would starve each other."""
    for item in items:
        if PROCESS_TESTS in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("process"))
