"""What a seed is after. A run with a bit of everything is deep in nothing, so most seeds are dominated by one kind of attack, with
the limits and the load that make it bite.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

Weights = MappingProxyType[str, float]
Ranges = MappingProxyType[str, tuple[int, int]]


class Taste(NamedTuple):
    """`weights` are those of the kinds of faults; one that is not named gets `rest` times its usual one. `pause` stretches the
    time between faults, `rate` is that of the load. `ranges` are drawn from instead of the limits' test ranges. `nodes` and
    `shards`: how many, 0 leaves it open. `idle`: the load pauses now and then."""

    name: str
    weights: Weights = MappingProxyType({})
    rest: float = 0.0
    pause: float = 1.0
    rate: float = 1.0
    ranges: Ranges = MappingProxyType({})
    nodes: int = 0
    shards: int = 0
    idle: bool = False

    def weight(self, kind: str, usual: float) -> float:
        return self.weights.get(kind, self.rest * usual)


MIXED = Taste("mixed", rest=1.0)

TASTES = (
    Taste(
        "fresh leaders",
        MappingProxyType(
            {"seesaw": 6.0, "hunt": 3.0, "at-election": 2.0, "at-vote": 1.0, "strand": 1.0, "kill-leader": 0.5, "reset": 1.0}
        ),
        rest=0.03,
        pause=1.5,
        ranges=MappingProxyType({"append_entries_max": (1, 2), "election_ticks_min": (6, 10), "tick_ms": (10, 30)}),
        nodes=3,
        shards=2,
    ),
    Taste(
        "old leaders",
        MappingProxyType(
            {"old-leader": 4.0, "pause-leader": 3.0, "isolate": 2.0, "deafen": 1.0, "slow-answers": 3.0, "stop": 1.0, "old-word": 3.0,
             "strand": 1.0, "kill": 1.0, "slow-link": 1.0}
        ),
        pause=1.3,
    ),
    Taste(
        "rivals",
        MappingProxyType({"rival": 6.0, "old-word": 2.0, "kill": 0.3}),
        pause=2.0,
        ranges=MappingProxyType(
            {"election_ticks_min": (14, 20), "election_ticks_max": (30, 40), "idle_ticks": (100, 200)}
        ),
        nodes=3,
    ),
    Taste(
        "in the dark",
        MappingProxyType(
            {"power": 4.0, "power-all": 2.0, "at-flush": 3.0, "at-roll": 3.0, "at-sync": 6.0, "at-commit": 3.0, "at-vote": 2.0, "kill": 2.0,
             "stall-disk": 1.0, "slow-disk": 1.0, "failed-sync": 1.0}
        ),
        rest=0.03,
        ranges=MappingProxyType({"segment_bytes": (2048, 16384), "flush_log_bytes": (1024, 8192)}),
    ),
    Taste(
        "left behind",
        MappingProxyType(
            {"at-snapshot": 4.0, "isolate": 3.0, "kill": 3.0, "power": 2.0, "cut": 2.0, "pause": 2.0, "stall-state": 1.0,
             "slow-disk": 1.0, "reset": 1.0, "kill-leader": 1.0, "lost-answers": 2.0, "laggard": 14.0}
        ),
        ranges=MappingProxyType(
            {"log_entries_kept_max": (4, 12), "log_bytes_kept_max": (512, 2048), "snapshot_chunk_bytes": (256, 1024)}
        ),
    ),
    Taste(
        "bad lines",
        MappingProxyType(
            {"reset": 5.0, "cut": 3.0, "slow-link": 3.0, "client-cut": 2.0, "slow-answers": 2.0, "split": 1.0, "deafen": 1.0,
             "linger": 4.0, "clog": 3.0, "lost-answers": 5.0, "client-away": 4.0}
        ),
        rest=0.1,
        ranges=MappingProxyType({"append_entries_max": (1, 3), "inflight_messages_max": (2, 8), "session_expiry_ms": (2000, 3000)}),
    ),
    Taste(
        "quiet",
        MappingProxyType({"stop": 2.0, "kill": 1.0, "reset": 2.0, "pause-leader": 1.0, "isolate": 1.0, "move": 1.0, "rival": 1.0}),
        pause=3.0,
        rate=0.5,
        idle=True,
    ),
)  # fmt: skip
MIXED_SHARE = 2


def taste_of(seed: int) -> Taste:
    """In turn: as many seeds in a row as there are tastes have them all, some of them with a bit of everything."""
    at = seed % (len(TASTES) + MIXED_SHARE)
    return TASTES[at] if at < len(TASTES) else MIXED
