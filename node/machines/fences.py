"""Fencing: requests that carry the token of a lock, refused once a higher one was shown (Kleppmann, "How to do distributed
locking", 2016).

Laws: the highest token shown of a name never goes down and outlives every restart and snapshot, being in the view. A request
that is refused here changes nothing. A token counts as shown when all tokens of its request passed, whatever the command then
says. Of a lock in this shard nothing needs to be kept: its token must be that of a present holder, and tokens only increase.

The view holds name -> token (8 bytes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ReadView, View
from node.machines.machine import Stamp
from proto.gen.entry_pb2 import Fence

_TOKEN = struct.Struct(">Q")


class Locks(Protocol):
    """What fences ask of the lock machine of their shard."""

    def holds(self, name: str, token: int, now_ms: int) -> bool: ...

    def confirm(self, name: str, token: int, stamp: Stamp, view: View) -> None: ...


class Fences:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._highest: dict[str, int] = {}

    def load(self, view: View) -> None:
        self._highest = _read(view)

    def check(self, fences: Iterable[Fence], now_ms: int, locks: Locks | None, view: View) -> None:
        """TenfoldError(STALE_TOKEN, LOCK_TABLE_FULL) when one of them does not pass; then nothing is changed."""
        shown: dict[str, int] = {}
        for fence in fences:
            name, token = fence.name, fence.token
            highest = max(self._highest.get(name, 0), shown.get(name, 0))
            if token < highest:
                raise TenfoldError(Code.STALE_TOKEN, f"{name!r}: token {token} was shown, and {highest} before it")
            if fence.holder:
                if locks is None or not locks.holds(name, token, now_ms):
                    raise TenfoldError(Code.STALE_TOKEN, f"{name!r}: token {token} is not that of a present holder")
            elif token > highest:
                shown[name] = token
        new = sum(name not in self._highest for name in shown)
        if new and len(self._highest) + new > self._limits.fence_names_max:
            message = f"tokens of {len(self._highest)} names were shown to this shard, at most as many"
            raise TenfoldError(Code.LOCK_TABLE_FULL, message)
        for name, token in shown.items():
            self._highest[name] = token
            view.put(name.encode(), _TOKEN.pack(token))

    def check_invariants(self, view: ReadView) -> None:
        assert self._highest == _read(view), "the tokens in memory are those in the view"
        assert len(self._highest) <= self._limits.fence_names_max, "fenced names are bounded"


def _read(view: ReadView) -> dict[str, int]:
    return {name.decode(): _TOKEN.unpack(token)[0] for name, token in view.scan(b"", b"")}
