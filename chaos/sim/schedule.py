"""The faults of a run, as data drawn from a seed before it begins.

A fault names what is done and carries its own draws, in [0, 1); who it hits is decided when it is due, from what is true
then. So a fault can be left out without changing any other, and a schedule can be cut down to what is needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

from chaos.sim.tastes import MIXED_SHARE, TASTES, taste_of


class Kind(NamedTuple):
    name: str
    weight: float
    seconds: tuple[float, float]
    """How long it lasts, or how long a node is down."""


KINDS = (
    Kind("kill", 3.0, (0.05, 3.0)),
    Kind("kill-leader", 3.0, (0.05, 3.0)),
    Kind("power", 2.0, (0.05, 4.0)),
    Kind("power-all", 0.5, (0.05, 1.0)),
    Kind("stop", 2.0, (0.05, 1.0)),
    Kind("pause", 2.0, (0.02, 5.0)),
    Kind("pause-leader", 2.0, (0.02, 5.0)),
    Kind("cut", 2.0, (0.1, 8.0)),
    Kind("isolate", 1.5, (0.1, 8.0)),
    Kind("deafen", 1.0, (0.1, 6.0)),
    Kind("split", 1.0, (0.5, 6.0)),
    Kind("client-cut", 1.0, (0.1, 4.0)),
    Kind("reset", 3.0, (0.0, 0.0)),
    Kind("linger", 2.0, (0.01, 2.0)),
    Kind("clog", 1.5, (0.3, 5.0)),
    Kind("slow-link", 1.5, (0.2, 5.0)),
    Kind("slow-disk", 1.5, (0.2, 5.0)),
    Kind("stall-disk", 1.5, (0.05, 4.0)),
    Kind("stall-state", 1.0, (0.1, 3.0)),
    Kind("full-disk", 0.7, (0.2, 3.0)),
    Kind("failed-sync", 0.5, (0.05, 2.0)),
    Kind("unreadable", 0.5, (0.05, 2.0)),
    Kind("clock-jump", 0.5, (0.0, 0.0)),
    Kind("clock-rate", 1.0, (0.0, 0.0)),
    Kind("move", 0.7, (0.05, 2.0)),
    Kind("at-election", 1.0, (0.05, 3.0)),
    Kind("at-vote", 0.7, (0.05, 3.0)),
    Kind("at-commit", 0.7, (0.05, 3.0)),
    Kind("at-flush", 0.5, (0.05, 2.0)),
    Kind("at-sync", 0.7, (0.05, 1.0)),
    Kind("at-roll", 0.5, (0.05, 2.0)),
    Kind("at-snapshot", 0.7, (0.05, 2.0)),
    Kind("hunt", 0.4, (1.0, 6.0)),
    Kind("seesaw", 0.4, (2.0, 8.0)),
    Kind("strand", 1.0, (0.1, 5.0)),
    Kind("old-leader", 0.7, (0.5, 6.0)),
    Kind("slow-answers", 0.7, (0.1, 4.0)),
    Kind("rival", 0.7, (0.6, 3.0)),
    Kind("old-word", 0.7, (0.0, 0.0)),
    Kind("client-away", 0.5, (0.0, 0.0)),
    Kind("laggard", 0.7, (0.3, 2.5)),
    Kind("lost-answers", 0.7, (0.5, 4.0)),
)
DAMAGE = (
    Kind("flip", 3.0, (0.05, 2.0)),
    Kind("stale-block", 2.0, (0.05, 2.0)),
    Kind("flip-sealed", 1.0, (0.05, 2.0)),
    Kind("wipe", 2.0, (0.05, 3.0)),
)
"""What destroys a copy (`damage.py`)."""
MEMBERS = (
    Kind("join", 3.0, (0.0, 0.0)),
    Kind("drain", 2.0, (0.0, 0.0)),
    Kind("bury", 1.0, (0.0, 0.0)),
)
"""Members that come and go (`members.py`), beside the other faults and seldom, since each takes its time."""
MEMBERS_PAUSE_S = 6.0
NAMES = tuple(kind.name for kind in KINDS)
GROUPS = MappingProxyType(
    {
        "all": NAMES,
        "none": (),
        "damage": tuple(kind.name for kind in DAMAGE),
        "members": tuple(kind.name for kind in MEMBERS),
        "prompt": (
            *("kill", "kill-leader", "power", "power-all", "stop", "reset", "full-disk", "failed-sync", "unreadable"),
            *("clock-jump", "clock-rate", "move", "at-sync", "stall-state"),
        ),
    }
)
PROMPT = frozenset({*GROUPS["prompt"], *GROUPS["damage"], *GROUPS["members"]})
"""These hold no message up. A replica counts the age of what it has from when its leader's word arrives, not from when it was said."""
MIXES = (("all",), ("all", "damage"), ("all", "members"), ("all", "damage", "members"), ("prompt",))
"""What seeds use, in turn, when nobody says which faults they shall have."""
KNOWN = (*NAMES, *GROUPS["damage"], *GROUPS["members"])


class Fault(NamedTuple):
    """`at_s` in virtual seconds from the start of the run; `draws` pick the victims."""

    at_s: float
    kind: str
    for_s: float
    draws: tuple[float, float, float]


def kinds_of(seed: int) -> tuple[str, ...]:
    """Of the seed's mix. Each taste meets every mix, within five times as many seeds as there are tastes."""
    lap, taste = divmod(seed, len(TASTES) + MIXED_SHARE)
    return kinds_in(MIXES[(lap + taste) % len(MIXES)])


def kinds_in(words: Iterable[str]) -> tuple[str, ...]:
    """`words` are groups and kinds; what is neither stays."""
    return tuple(kind for word in words for kind in GROUPS.get(word, (word,)))


def words_for(kinds: tuple[str, ...]) -> str:
    """The shortest words for these kinds: `kinds_in` takes them back."""
    words: list[str] = []
    covered: set[str] = set()
    for name, group in GROUPS.items():
        if covered < {*covered, *group} and set(group) <= set(kinds):
            words.append(name)
            covered.update(group)
    return ",".join([*words, *(kind for kind in kinds if kind not in covered)]) or "none"


def draw_schedule(seed: int, duration_s: float, kinds: tuple[str, ...] = NAMES) -> list[Fault]:
    """About one fault a second, in bursts and pauses. Each run has a taste of its own (`tastes.py`), and within it prefers
    some kinds, drawn at random."""
    chance = random.Random(f"{seed}/faults")
    taste = taste_of(seed)
    used = [kind for kind in (*KINDS, *DAMAGE) if kind.name in kinds]
    weights = [taste.weight(kind.name, kind.weight) * chance.choice((0.0, 0.3, 1.0, 1.0, 3.0)) for kind in used]
    if not any(weights):
        weights = [kind.weight for kind in used]
    pause_s = taste.pause * 10 ** chance.uniform(-0.4, 0.1)
    faults: list[Fault] = []
    at_s = 1.0
    while used and at_s < duration_s:
        kind = chance.choices(used, weights)[0]
        low, high = kind.seconds
        for_s = low * (high / low) ** chance.random() if low else 0.0
        faults.append(
            Fault(round(at_s, 6), kind.name, round(for_s, 6), (chance.random(), chance.random(), chance.random()))
        )
        at_s += pause_s * chance.expovariate(1.0)
    return sorted([*faults, *_draw_members(seed, duration_s, kinds)])


def _draw_members(seed: int, duration_s: float, kinds: tuple[str, ...]) -> list[Fault]:
    chance = random.Random(f"{seed}/members")
    used = [kind for kind in MEMBERS if kind.name in kinds]
    faults: list[Fault] = []
    at_s = 2.0
    while used and at_s < duration_s:
        kind = chance.choices(used, [kind.weight for kind in used])[0]
        faults.append(Fault(round(at_s, 6), kind.name, 0.0, (chance.random(), chance.random(), chance.random())))
        at_s += MEMBERS_PAUSE_S * chance.expovariate(1.0)
    return faults
