"""How a bug gets in, and out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple


class Patch(NamedTuple):
    """`owner.name` is `value` while the bug is in."""

    owner: Any
    name: str
    value: Any


class Bug(NamedTuple):
    """`what` says in one line what the code does wrong."""

    name: str
    what: str
    patches: Sequence[Patch]


@contextmanager
def infected(bug: Bug) -> Iterator[None]:
    """The production code with the bug in it."""
    with ExitStack() as stack:
        for patch in bug.patches:
            stack.callback(setattr, patch.owner, patch.name, getattr(patch.owner, patch.name))
            setattr(patch.owner, patch.name, patch.value)
        yield
