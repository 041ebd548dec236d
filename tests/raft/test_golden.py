"""The transcripts in tests/golden. `GOLDEN=rewrite` in the environment writes them anew: read the difference before it
is committed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.raft.transcript import Transcript

FILES = sorted((Path(__file__).parent.parent / "golden").glob("raft_*.txt"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_golden(path: Path) -> None:
    expected = path.read_text()
    found = Transcript().run(expected)
    if os.environ.get("GOLDEN") == "rewrite":
        path.write_text(found)
    else:
        assert found == expected


def test_golden_transcripts_are_there() -> None:
    assert len(FILES) >= 8


def test_golden_comparison_notices_a_change() -> None:
    text = FILES[0].read_text()
    assert Transcript().run(text.replace("term=1", "term=9")) != text.replace("term=1", "term=9")
