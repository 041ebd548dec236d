"""What a write names to be refused when a lock has gone on to somebody else: the fencing tokens it was made under.

Law: a request under a token is a sub-request of its own, since its refusal is no other caller's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Protocol

from client.arguments import text, whole
from cluster.errors import invalid
from cluster.limits import Limits
from proto.gen.entry_pb2 import Fence

_TOKEN_MAX = 2**64 - 1
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})


class Tokens(Protocol):
    """A held lock, or a group: its tokens by name."""

    @property
    def tokens(self) -> Mapping[str, int]: ...


Fenced = tuple[str, int] | Tokens
"""The name of a lock and a token of it, or what is held."""


def lock_name(given: Any, limits: Limits, field: str = "name") -> str:
    """A name a lock may have: 1 to `lock_name_bytes_max` bytes of UTF-8, all of them visible."""
    name = text(given, field)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise invalid(field, "the text holds half of a surrogate pair, which is not UTF-8") from None
    if not 1 <= size <= limits.lock_name_bytes_max:
        raise invalid(field, f"{size} bytes, must be 1 to {limits.lock_name_bytes_max}")
    return visible(name, field)


def visible(given: str, field: str) -> str:
    """Text that looks on every screen like what it is: no control character, none that is invisible or turns the direction of
    writing, no line or paragraph separator."""
    for each in given:
        if unicodedata.category(each) in _INVISIBLE:
            raise invalid(field, f"a control character or one that is not seen, U+{ord(each):04X}")
    return given


def fences_of(given: Fenced | None, limits: Limits) -> tuple[Fence, ...]:
    """InvalidArgument names what is wrong with them."""
    if given is None:
        return ()
    if isinstance(given, tuple):
        if len(given) != 2:
            raise invalid("if_fence", f"{len(given)} values, must be a name and a token, or a held lock")
        pairs = [given]
    elif hasattr(given, "tokens"):
        pairs = list(given.tokens.items())
    else:
        raise invalid("if_fence", f"{type(given).__name__}, must be a name and a token, or a held lock")
    if not 1 <= len(pairs) <= limits.fences_max:
        raise invalid("if_fence", f"{len(pairs)} tokens, must be 1 to {limits.fences_max}")
    return tuple(_fence(name, token, limits) for name, token in pairs)


def _fence(name: str, token: int, limits: Limits) -> Fence:
    if not 1 <= whole(token, "if_fence") <= _TOKEN_MAX:
        raise invalid("if_fence", f"token {token}, must be 1 to {_TOKEN_MAX}")
    return Fence(name=lock_name(name, limits, "if_fence"), token=token)
