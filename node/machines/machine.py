"""What a capability's replicated machine is.

Law: the same commands under the same stamps, from the same view, leave the same bytes in the view and give the same
results, on every replica and after every restart. So a machine reads no clock, draws no chance, opens nothing, and keeps
in memory only what `load` rebuilds from the view.
"""

from __future__ import annotations

from typing import Any, Protocol

from cluster.ports import ReadView, View


class Stamp:
    """Where and when an entry is applied. `index` and `term` are its place in the log, `time_ms` is shard time (never goes
    back, the only time that decides anything), `wall_ms` is for users' dates, `principal` is who asks. Machines append what
    they change to `changes` as (key, encoded event); the applier writes them to the feed."""

    __slots__ = ("changes", "index", "principal", "term", "time_ms", "wall_ms")

    def __init__(self, index: int, term: int, time_ms: int, wall_ms: int) -> None:
        self.index = index
        self.term = term
        self.time_ms = time_ms
        self.wall_ms = wall_ms
        self.principal = ""
        self.changes: list[tuple[bytes, bytes]] = []


class Machine(Protocol):
    name: str

    def load(self, view: View) -> None:
        """Rebuilds what is kept in memory from the view."""

    def parse(self, body: bytes) -> Any:
        """The command in a request's body. Nothing is validated: the leader's service did that before proposing."""

    def apply(self, command: Any, stamp: Stamp, view: View) -> Any | None:
        """The result message; None is plain success with an empty body. TenfoldError is a definite refusal, raised before
        anything was written. Any other exception is a bug."""

    def query(self, request: Any, view: ReadView, now_ms: int) -> Any:
        """The answer message. Hides nothing by time; `now_ms` is shard time of the last applied entry, for what an answer says
        of time. TenfoldError."""

    def pulse_due(self, view: ReadView, now_ms: int) -> bool:
        """Would a pulse stamped `now_ms` (shard time) change anything here?"""

    def pulse(self, stamp: Stamp, view: View) -> None:
        """Expires what is due at the stamp, a bounded number of keys; what is left makes `pulse_due` true again."""

    def check_invariants(self, view: ReadView) -> None:
        """AssertionError names the law that is broken. Reads everything: for tests and simulation."""
