"""What callers pass, checked by type before anything is made of it: bytes(5) would be five zero bytes, and a text is a list of
its characters. Errors are InvalidArgument and name the field and what was given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.errors import TenfoldError, invalid
from cluster.limits import Limits


def octets(given: Any, field: str) -> bytes:
    """Text as UTF-8, or bytes."""
    if isinstance(given, str):
        try:
            return given.encode()
        except UnicodeEncodeError:
            raise invalid(field, "the text holds half of a surrogate pair, which is not UTF-8") from None
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    raise _wrong(field, given, "text or bytes")


def text(given: Any, field: str) -> str:
    if not isinstance(given, str):
        raise _wrong(field, given, "text")
    return given


def whole(given: Any, field: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise _wrong(field, given, "a whole number")
    return given


def each_of(given: Any, field: str) -> Iterable[Any]:
    """Several, not one text taken apart."""
    if isinstance(given, str | bytes | bytearray) or not isinstance(given, Iterable):
        raise _wrong(field, given, "a list")
    return given


def seconds(given: Any, field: str, limits: Limits) -> float:
    """A time to wait; none at all may be left of it."""
    if not isinstance(given, int | float) or isinstance(given, bool):
        raise _wrong(field, given, "a number of seconds")
    if math.isnan(given):
        raise invalid(field, "nan, must be a number of seconds")
    if given * 1000 > limits.deadline_ms_max:
        raise invalid(field, f"{str(given)[:20]}, must be at most {limits.deadline_ms_max / 1000:g}")
    return given


def addresses(given: Sequence[str], field: str = "addresses") -> list[str]:
    found = list(each_of(given, field))
    if not found:
        raise invalid(field, "at least one is needed")
    for position, each in enumerate(found):
        host, _, port = text(each, f"{field}[{position}]").rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
            raise invalid(f"{field}[{position}]", f"{each!r}, must be host:port")
    return found


def _wrong(field: str, given: Any, wanted: str) -> TenfoldError:
    shown = repr(given)
    return invalid(field, f"{type(given).__name__} {shown[:40]}{'...' * (len(shown) > 40)}, must be {wanted}")
