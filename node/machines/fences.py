"""Fencing: requests that carry the token of a lock, refused once a higher one was shown (Kleppmann, "How to do distributed
locking", 2016).

Laws: the highest token shown of a name never goes down and outlives every restart and snapshot, being in the view, until the name
was not shown for `fence_expiry_ms` of shard time; then a pulse forgets it. A request that is refused here changes nothing. A
token counts as shown when all tokens of its request passed, whatever the command then says. Of a lock in this shard nothing needs
to be kept: its token must be that of a present holder, and tokens only increase.

The view holds name -> token, and when it was shown (8 bytes each). That time is written again only when it is older by an eighth
of what it is good for, so a name is kept for up to an eighth longer and one more showing is seldom one more write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ReadView, View
from node.machines.lock_deadlines import Deadlines
from node.machines.machine import Stamp
from proto.gen.entry_pb2 import Fence

_RECORD = struct.Struct(">QQ")


class Locks(Protocol):
    """What fences ask of the lock machine of their shard."""

    def check_holder(self, fence: Fence, stamp: Stamp) -> None: ...

    def confirm(self, name: str, token: int, stamp: Stamp, view: View) -> None: ...


class Shown(NamedTuple):
    token: int
    shown_ms: int


class Fences:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._grain_ms = limits.fence_expiry_ms // 8
        self._begin({})

    def _begin(self, names: dict[str, Shown]) -> None:
        self._names = names
        self._ends = Deadlines(names, self._ends_ms)

    def _ends_ms(self, shown: Shown) -> int:
        return shown.shown_ms + self._limits.fence_expiry_ms + self._grain_ms

    def load(self, view: View) -> None:
        self._begin(_read(view))

    def check(self, fences: Iterable[Fence], stamp: Stamp, locks: Locks | None, view: View) -> None:
        """TenfoldError(STALE_TOKEN, NOT_HOLDER, LOCK_TABLE_FULL) when one of them does not pass; then nothing is changed."""
        names = self._names
        shown: dict[str, int] = {}
        for fence in fences:
            name, token = fence.name, fence.token
            known = names.get(name)
            highest = max(known.token if known is not None else 0, shown.get(name, 0))
            if token < highest:
                raise TenfoldError(Code.STALE_TOKEN, f"{name!r}: token {token} was shown, and {highest} before it")
            if not fence.holder:
                shown[name] = token
            elif locks is None:
                raise TenfoldError(Code.STALE_TOKEN, f"{name!r}: this shard has no locks")
            else:
                locks.check_holder(fence, stamp)
        new = sum(name not in names for name in shown)
        if new and len(names) + new > self._limits.fence_names_max:
            message = f"tokens of {len(names)} names were shown to this shard, at most as many"
            raise TenfoldError(Code.LOCK_TABLE_FULL, message)
        for name, token in shown.items():
            self._show(name, token, stamp.time_ms, view)

    def _show(self, name: str, token: int, now_ms: int, view: View) -> None:
        known = self._names.get(name)
        if known is not None and known.token == token and now_ms < known.shown_ms + self._grain_ms:
            return
        self._names[name] = Shown(token, now_ms)
        if known is None:
            self._ends.push(name)
        view.put(name.encode(), _RECORD.pack(token, now_ms))

    def pulse_due(self, now_ms: int) -> bool:
        return self._ends.due(now_ms)

    def pulse(self, now_ms: int, view: View) -> None:
        """Forgets names that were not shown for so long, a bounded number."""
        room = self._limits.pulse_keys_max
        while room > 0 and self._ends.due(now_ms):
            first = self._ends.earliest()
            assert first is not None
            room -= 1
            del self._names[first[1]]
            view.delete(first[1].encode())

    def check_invariants(self, view: ReadView) -> None:
        names = _read(view)
        assert self._names == names, "the tokens in memory are those in the view"
        assert len(names) <= self._limits.fence_names_max, "fenced names are bounded"
        assert self._ends.earliest() == Deadlines(names, self._ends_ms).earliest(), "no deadline is missed"


def _read(view: ReadView) -> dict[str, Shown]:
    return {name.decode(): Shown(*_RECORD.unpack(record)) for name, record in view.scan(b"", b"")}
