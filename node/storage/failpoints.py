"""Named places at the durable boundaries where a process can be told to die, to prove that recovery works from there.

`TENFOLD_FAILPOINT=name` kills this process (SIGKILL, so nothing is cleaned up) the first time `failpoint(name)` runs,
`name:n` the n-th time. Without the variable a call costs about 40 ns. After the failpoints of etcd (gofail).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count

VARIABLE = "TENFOLD_FAILPOINT"

NAMES = (
    "append.before",
    "append.torn",  # a prefix of the round is in the file
    "append.after",
    "sync.before",
    "sync.after",
    "segment.created",
    "segment.written",
    "segment.synced",
    "segment.renamed",
    "segment.durable",
    "release.before",
    "release.removed",
    "recovery.read",
    "recovery.opened",
    "state.write",
    "state.written",
    "flush.before",
    "flush.after",
    "install.chunk",
    "install.before",
    "install.switched",
    "install.cleaned",
    "sealed.written",
    "sealed.renamed",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def armed(setting: str, act: Callable[[], None] = die) -> Callable[[str], None]:
    """A `failpoint` for a setting `name[:nth]` that runs `act` at the nth hit of that name, nth from 1. ValueError for an
    unknown name or a count below one."""
    wanted, _, nth = setting.partition(":")
    if wanted not in NAMES:
        raise ValueError(f"{VARIABLE}: unknown failpoint {wanted!r}; known: {', '.join(NAMES)}")
    if nth and (not nth.isdigit() or int(nth) < 1):
        raise ValueError(f"{VARIABLE}: {setting!r}: the count after the colon must be a number from 1")
    last, hits = int(nth or 1), count(1)

    def hit(name: str) -> None:
        if name == wanted and next(hits) == last:
            act()

    return hit


def off(name: str) -> None:
    """The `failpoint` of a process that was not told to die."""


failpoint: Callable[[str], None] = armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else off
torn_wanted: bool = os.environ.get(VARIABLE, "").startswith("append.torn")
