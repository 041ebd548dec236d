"""Nodes whose clocks lie: each runs at a rate of its own, or its wall clock jumps while it runs.

Carried out by libfaketime, preloaded into the node's process: a rate is fixed when the process starts and holds for all its clocks, a
jump moves the wall clock alone (a monotonic clock that jumps would be a broken kernel, not a fault). Rates stay within what the
leases allow for: two clocks of a cluster differ by at most `lease_drift_percent`. After reliability.md, faults of time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from cluster.limits import DEFAULT

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)
JUMP_S_MAX = 3600.0
MISSING = "libfaketime is not installed (Debian's package is faketime): no clock was changed"


def library() -> Path | None:
    """Where libfaketime is; None if clocks cannot be changed here."""
    return next((Path(path) for path in LIBRARIES if Path(path).exists()), None)


class Clocks:
    """The clocks of `nodes`, drawn from `seed`: every second one runs at a rate of its own, the others' wall clocks can be moved.
    Files that steer them lie in `directory`."""

    def __init__(self, library: Path, directory: Path, nodes: Sequence[str], seed: int) -> None:
        self._library = library
        self._directory = directory
        chance = random.Random(f"{seed}/clocks")
        half = DEFAULT.lease_drift_percent / 100 / 2
        self.rates = {node: 1 + chance.uniform(-half, half) for node in nodes[::2]}
        self.jumping = list(nodes[1::2])
        directory.mkdir(parents=True, exist_ok=True)
        for node in self.jumping:
            self.jump(node, 0.0)

    def variables(self, node: str) -> dict[str, str]:
        """What the environment of the node's process needs."""
        if node in self.rates:
            return {"LD_PRELOAD": str(self._library), "FAKETIME": f"+0 x{self.rates[node]:.4f}"}
        if node not in self.jumping:
            return {}
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file(node)),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, node: str, seconds: float) -> None:
        """The node's wall clock is so far from ours, within a second from now."""
        assert abs(seconds) <= JUMP_S_MAX, "a jump is within an hour"
        new = self._file(node).with_suffix(".new")
        new.write_text(f"{seconds:+.1f}\n")
        new.replace(self._file(node))

    def _file(self, node: str) -> Path:
        return self._directory / f"{node}.faketime"
