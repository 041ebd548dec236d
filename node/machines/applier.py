"""Applies a shard's committed entries: sessions and fences around the machines, the feed behind them.

Law: entries are applied in log order, each exactly once, and everything an entry does is in the views when `apply` returns.
Shard time is the highest stamp applied so far; an entry stamped earlier is applied at that time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import View
from cluster.raft.messages import Entry
from cluster.types import EntryKind
from node.machines.feed import Changes, Feed
from node.machines.fences import Fences, Locks
from node.machines.machine import Machine, Stamp
from node.machines.sessions import Outcome, Sessions
from proto.gen.entry_pb2 import EntryPayload, Request

__all__ = ["Applier", "Outcome", "ParsedEntry"]

_OK = int(Code.OK)  # an enum's member costs a look-up, and this is asked per request
_NORMAL = int(EntryKind.NORMAL)
_SESSION = int(EntryKind.SESSION)
_PULSE = int(EntryKind.PULSE)
_EMPTY = int(EntryKind.EMPTY)
_CONFIG = int(EntryKind.CONFIG)


class ParsedEntry:
    """What a leader keeps in Entry.parsed for its own apply: the payload, and for each request its parsed command (None
    where it opens a session)."""

    __slots__ = ("commands", "payload")

    def __init__(self, payload: EntryPayload, commands: list[Any | None]) -> None:
        self.payload = payload
        self.commands = commands


class Applier:
    """One shard's machines. `time_ms` is shard time of the last applied entry; whoever stores the applied index stores it
    in the same batch and gives it back to `load`."""

    def __init__(self, shard: int, machines: Mapping[str, Machine], limits: Limits) -> None:
        self.shard = shard
        self.machines = dict(machines)
        self.feed = Feed(limits)
        self.sessions = Sessions(limits)
        self.fences = Fences(limits)
        self._locks = cast(Locks | None, self.machines.get("lock"))
        self.time_ms = 0
        self._views: dict[str, View] = {}

    def load(self, view_of: Callable[[str], View], time_ms: int) -> None:
        """After a start and after a snapshot was installed: all that is in memory comes from the views again."""
        self._views = {name: view_of(name) for name in (*self.machines, "session", "fence", "feed")}
        for name, machine in self.machines.items():
            machine.load(self._views[name])
        self.sessions.load(self._views["session"])
        self.fences.load(self._views["fence"])
        self.feed.load(self._views["feed"])
        assert time_ms >= self.sessions.newest_ms, "shard time is stored with the applied index and never goes back"
        self.time_ms = time_ms

    def apply(self, entry: Entry, *, want_results: bool) -> list[Outcome] | None:
        """Applies one committed entry. With `want_results` an outcome per request, in their order; otherwise None. Any
        exception is a bug: the replica must stop, since its memory and the views may differ."""
        if entry.kind == _CONFIG:
            return [] if want_results else None
        parsed: ParsedEntry | None = entry.parsed
        if parsed is not None:
            payload, commands = parsed.payload, parsed.commands
        else:
            payload, commands = EntryPayload.FromString(entry.payload), None
        if payload.time_ms > self.time_ms:
            self.time_ms = payload.time_ms
        stamp = Stamp(entry.index, entry.term, self.time_ms, payload.wall_ms)
        groups: dict[str, Changes] = {}  # by capability, in the order of its first request
        outcomes: list[Outcome] = []
        if entry.kind == _PULSE:
            self._pulse(stamp, groups)
        elif entry.kind in (_NORMAL, _SESSION):
            for position, request in enumerate(payload.requests):
                command = commands[position] if commands is not None else None
                outcomes.append(self._request(request, command, position, stamp, groups))
        else:
            assert entry.kind == _EMPTY, f"entry kind {entry.kind} is reserved"
        changed = [group for group in groups.items() if group[1]]
        if changed:
            self.feed.append(entry.index, changed)
        return outcomes if want_results else None

    def _request(
        self, request: Request, command: Any | None, position: int, stamp: Stamp, groups: dict[str, Changes]
    ) -> Outcome:
        if request.open_session:
            return self.sessions.open(stamp.index, position, stamp.time_ms, self._views["session"])
        name = request.capability
        machine = self.machines.get(name)
        if machine is None:
            return Outcome(Code.UNKNOWN_CAPABILITY, f"shard {self.shard} does not serve {name!r}", b"", stamp.index)
        session = request.session
        if session:
            sequence, low_water = request.sequence, request.low_water
            view = self._views["session"]
            answered = self.sessions.admit(session, sequence, low_water, stamp.index, view)
            if answered is not None:
                return answered
        stamp.changes = groups.setdefault(name, [])
        stamp.principal = request.principal
        if request.fences:
            outcome = self._fenced(machine, request, command, stamp, groups)
        else:
            outcome = self._command(machine, request, command, stamp)
        if session:
            self.sessions.keep(session, sequence, low_water, stamp.time_ms, outcome, view)
        return outcome

    def _command(self, machine: Machine, request: Request, command: Any | None, stamp: Stamp) -> Outcome:
        if command is None:
            command = machine.parse(request.body)
        changed = len(stamp.changes)
        try:
            result = machine.apply(command, stamp, self._views[machine.name])
        except TenfoldError as refusal:
            assert len(stamp.changes) == changed, "a refused command changes nothing"
            return Outcome(refusal.code, refusal.message, b"", stamp.index)
        return Outcome(_OK, "", b"" if result is None else result.SerializeToString(), stamp.index)

    def _fenced(
        self, machine: Machine, request: Request, command: Any | None, stamp: Stamp, groups: dict[str, Changes]
    ) -> Outcome:
        """The request if its tokens hold; with it the locks are released that it says."""
        try:
            self.fences.check(request.fences, stamp, self._locks, self._views["fence"])
        except TenfoldError as refusal:
            return Outcome(refusal.code, refusal.message, b"", stamp.index)
        outcome = self._command(machine, request, command, stamp)
        if outcome.code == _OK:
            stamp.changes = groups.setdefault("lock", [])
            for fence in request.fences:
                if fence.release:
                    assert self._locks is not None and fence.holder, "a lock that is released lies in this shard"
                    self._locks.confirm(fence.name, fence.token, stamp, self._views["lock"])
        return outcome

    def _pulse(self, stamp: Stamp, groups: dict[str, Changes]) -> None:
        for name, machine in self.machines.items():
            stamp.changes = groups[name] = []
            machine.pulse(stamp, self._views[name])
        self.sessions.pulse(stamp.time_ms, self._views["session"])
        self.fences.pulse(stamp.time_ms, self._views["fence"])

    def pulse_due(self, now_ms: int) -> bool:
        """Would a pulse stamped `now_ms` expire anything? Cheap: asked at every tick by the leader."""
        return (
            self.sessions.pulse_due(now_ms)
            or self.fences.pulse_due(now_ms)
            or any(machine.pulse_due(self._views[name], now_ms) for name, machine in self.machines.items())
        )

    def query(self, capability: str, request: Any) -> Any:
        """The answer of a capability's machine, as of the last applied entry. TenfoldError."""
        machine = self.machines.get(capability)
        if machine is None:
            raise TenfoldError(Code.UNKNOWN_CAPABILITY, f"shard {self.shard} does not serve {capability!r}")
        return machine.query(request, self._views[capability], self.time_ms)

    def check_invariants(self) -> None:
        for name, machine in self.machines.items():
            machine.check_invariants(self._views[name])
        self.sessions.check_invariants(self._views["session"])
        self.fences.check_invariants(self._views["fence"])
        self.feed.check_invariants(self._views["feed"])
        assert self.sessions.newest_ms <= self.time_ms, "no session is used in the future"
