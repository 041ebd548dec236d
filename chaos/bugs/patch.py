"""How a bug gets in, and out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from cluster.raft import core


class Patch(NamedTuple):
    """`owner.name` is `value` while the bug is in."""

    owner: Any
    name: str
    value: Any


class Bug(NamedTuple):
    """`what` says in one line what the code does wrong. `taste` names the kind of attack that brings about what it needs
    (chaos/sim/tastes.py): seeds of that taste come before the others, which is a matter of speed alone. `faults` are the groups of
    faults it is searched with, as `--faults` names them, and `workload` is the load under which it shows."""

    name: str
    what: str
    patches: Sequence[Patch]
    taste: str = ""
    faults: str = "all"
    workload: str = "kv"


def handlers(**changed: Any) -> dict[int, Any]:
    """The core's handlers with some of them, named as their functions are, replaced."""
    by_name = {function.__name__: kind for kind, function in core.HANDLERS.items()}
    return core.HANDLERS | {by_name[name]: function for name, function in changed.items()}


@contextmanager
def infected(bug: Bug) -> Iterator[None]:
    """The production code with the bug in it."""
    with ExitStack() as stack:
        for patch in bug.patches:
            stack.callback(setattr, patch.owner, patch.name, getattr(patch.owner, patch.name))
            setattr(patch.owner, patch.name, patch.value)
        yield
