"""The session table of a shard: what makes a retried request take effect once (Raft thesis, section 6.3).

Laws: a sequence of a session is applied at most once; a duplicate gets the first answer. A result is dropped only below the
session's low-water mark, and whatever lies at or below it answers SessionExpired (unknown), never a second application. All
of the table is in the view, so it is inside every snapshot; memory holds an index of it that `load` rebuilds.

The view holds session (8 bytes) + sequence (8 bytes) -> low-water mark, shard time, log index, code, body or message: one put
per request. Sequence 0 is the record of the opening. The session's mark and last use are the highest any record names, so
only what is put counts as use: a duplicate or a refused request does not keep a session alive.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from cluster.errors import Code
from cluster.limits import Limits
from cluster.ports import ReadView, View

_KEY = struct.Struct(">QQ")
_RECORD = struct.Struct(">QQQH")
_OVERHEAD_BYTES = _KEY.size + _RECORD.size
_OK = int(Code.OK)
_POSITIONS = 4096  # requests an entry may hold, for session ids


class Outcome:
    """How a request ended. `body` is the result of a request with code OK, `message` says more with any other. `index` is
    the log index it took effect at, of the first application for a duplicate. `session` is set by an opening."""

    __slots__ = ("body", "code", "index", "message", "session")

    def __init__(self, code: int, message: str, body: bytes, index: int, session: int = 0) -> None:
        self.code = code
        self.message = message
        self.body = body
        self.index = index
        self.session = session

    def __repr__(self) -> str:
        return f"{Code(self.code).name} {self.message!r} {self.body!r} at {self.index} session {self.session}"


class _Session:
    __slots__ = ("bytes", "low_water", "sizes", "time_ms")

    def __init__(self, low_water: int, time_ms: int) -> None:
        self.low_water = low_water
        self.time_ms = time_ms
        self.sizes: dict[int, int] = {}  # kept result's size by sequence
        self.bytes = 0


class Sessions:
    def __init__(self, limits: Limits) -> None:
        assert limits.entry_requests_max <= _POSITIONS, "a session id names the request's position in its entry"
        self._limits = limits
        self._sessions: OrderedDict[int, _Session] = OrderedDict()  # by last use in shard time

    def load(self, view: View) -> None:
        found = _read(view)
        self._sessions = OrderedDict(sorted(found.items(), key=lambda item: (item[1].time_ms, item[0])))

    @property
    def newest_ms(self) -> int:
        """Shard time of the last use of any session; 0 where there is none."""
        return next(reversed(self._sessions.values())).time_ms if self._sessions else 0

    def __len__(self) -> int:
        return len(self._sessions)

    # ---- a session's life

    def open(self, index: int, position: int, time_ms: int, view: View) -> Outcome:
        """A new session. Where there are too many, the one unused for longest goes (of equals the oldest)."""
        if len(self._sessions) >= self._limits.sessions_max:
            self._drop(self._least_recent(), view)
        session = index * _POSITIONS + position
        self._sessions[session] = _Session(0, time_ms)
        view.put(_KEY.pack(session, 0), _RECORD.pack(0, time_ms, index, Code.OK))
        return Outcome(Code.OK, "", b"", index, session)

    def pulse_due(self, now_ms: int) -> bool:
        if not self._sessions:
            return False
        return next(iter(self._sessions.values())).time_ms + self._limits.session_expiry_ms <= now_ms

    def pulse(self, time_ms: int, view: View) -> None:
        """Ends the sessions unused for the expiry time, until about `pulse_keys_max` keys are gone; a session ends whole."""
        removed = 0
        while removed < self._limits.pulse_keys_max and self.pulse_due(time_ms):
            removed += self._drop(self._least_recent(), view)

    # ---- a request's way

    def admit(self, session: int, sequence: int, low_water: int, index: int, view: View) -> Outcome | None:
        """None when the request is to be applied now; otherwise its outcome, and nothing was changed."""
        held = self._sessions.get(session)
        if held is None:
            return Outcome(Code.SESSION_EXPIRED, f"session {session} is unknown", b"", index)
        if sequence in held.sizes:
            return self._kept(session, sequence, view)
        if sequence <= held.low_water:
            message = f"sequence {sequence} is not above the session's low-water mark {held.low_water}"
            return Outcome(Code.SESSION_EXPIRED, message, b"", index)
        mark = max(held.low_water, min(low_water, sequence - 1))
        if sequence > mark + self._limits.session_window:
            message = (
                f"sequence {sequence} is over the window of {self._limits.session_window} above {mark}; not applied"
            )
            return Outcome(Code.OVERLOADED, message, b"", index)
        return None

    def keep(self, session: int, sequence: int, low_water: int, time_ms: int, outcome: Outcome, view: View) -> None:
        """Records the outcome of an admitted request and drops the results its low-water mark covers (the mark never
        covers the request itself). A result over the session's bytes is not kept: its duplicates answer SessionExpired."""
        held = self._sessions[session]
        code = outcome.code
        kept = outcome.body if code == _OK else outcome.message.encode()
        size = _OVERHEAD_BYTES + len(kept)
        if size > self._limits.session_bytes_max:
            code, kept = Code.SESSION_EXPIRED, b"the result was too large to keep"
            size = _OVERHEAD_BYTES + len(kept)
        mark = min(low_water, sequence - 1)
        if mark > held.low_water:
            self._raise(session, held, mark, view)
        while held.sizes and held.bytes + size > self._limits.session_bytes_max:
            oldest = min(held.sizes)
            if sequence < oldest:  # a late one: the mark must not pass it, so it is this result that is not kept
                code, kept = Code.SESSION_EXPIRED, b"there was no room to keep the result"
                size = _KEY.size + _RECORD.size + len(kept)
                break
            self._raise(session, held, oldest, view)
        held.sizes[sequence] = size
        held.bytes += size
        held.time_ms = time_ms
        self._sessions.move_to_end(session)
        view.put(_KEY.pack(session, sequence), _RECORD.pack(held.low_water, time_ms, outcome.index, code) + kept)

    def _kept(self, session: int, sequence: int, view: View) -> Outcome:
        record = view.get(_KEY.pack(session, sequence))
        assert record is not None, f"session {session} keeps the result of {sequence}"
        _, _, index, code = _RECORD.unpack_from(record)
        kept = record[_RECORD.size :]
        return Outcome(code, "", kept, index) if code == Code.OK else Outcome(code, kept.decode(), b"", index)

    def _raise(self, session: int, held: _Session, mark: int, view: View) -> None:
        assert mark > held.low_water, (
            f"session {session}: the low-water mark goes up, not from {held.low_water} to {mark}"
        )
        sizes = held.sizes
        span = mark - held.low_water
        covered = range(held.low_water + 1, mark + 1) if span <= len(sizes) else sorted(s for s in sizes if s <= mark)
        for sequence in covered:
            size = sizes.pop(sequence, 0)
            if size:
                held.bytes -= size
                view.delete(_KEY.pack(session, sequence))
        held.low_water = mark

    def _least_recent(self) -> int:
        # Sessions last used at the same shard time tie; the memory of which was first would not survive a load.
        first_ms = next(iter(self._sessions.values())).time_ms
        least = -1
        for session, held in self._sessions.items():
            if held.time_ms != first_ms:
                break
            if least < 0 or session < least:
                least = session
        return least

    def _drop(self, session: int, view: View) -> int:
        held = self._sessions.pop(session)
        view.delete(_KEY.pack(session, 0))
        for sequence in held.sizes:
            view.delete(_KEY.pack(session, sequence))
        return len(held.sizes) + 1

    # ---- laws

    def check_invariants(self, view: ReadView) -> None:
        found = _read(view)
        assert found.keys() == self._sessions.keys(), "the table in memory is the table in the view"
        assert len(found) <= self._limits.sessions_max, "sessions are bounded"
        last_ms = 0
        for session, held in self._sessions.items():
            other = found[session]
            assert held.low_water == other.low_water, f"session {session}: the low-water mark can be rebuilt"
            assert held.time_ms == other.time_ms, f"session {session}: the last use can be rebuilt"
            assert held.sizes == other.sizes, f"session {session}: the kept results can be rebuilt"
            assert held.bytes == other.bytes == sum(held.sizes.values()), f"session {session}: bytes are counted"
            assert held.time_ms >= last_ms, "sessions lie in the order of their last use"
            last_ms = held.time_ms
            for sequence in held.sizes:
                assert held.low_water < sequence, f"session {session}: nothing is kept below the low-water mark"
            assert len(held.sizes) <= 1 or held.bytes <= self._limits.session_bytes_max, "kept results are bounded"


def _read(view: ReadView) -> dict[int, _Session]:
    found: dict[int, _Session] = {}
    for key, record in view.scan(b"", b""):
        session, sequence = _KEY.unpack(key)
        low_water, time_ms, _, _ = _RECORD.unpack_from(record)
        held = found.get(session)
        if held is None:
            assert sequence == 0, f"session {session} has no record of its opening"
            held = found[session] = _Session(0, 0)
        else:
            size = len(key) + len(record)
            held.sizes[sequence] = size
            held.bytes += size
        held.low_water = max(held.low_water, low_water)
        held.time_ms = max(held.time_ms, time_ms)
    return found
