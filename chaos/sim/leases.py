"""What leaders may answer reads from.

recent reads    a linearizable read is answered from a state that holds whatever any replica had applied and its leader had
                committed when it came, and a lease read too (Raft thesis, section 6.4)
no early reads  a leader answers no read before an entry of its term is committed (the same)
no late leases  a lease read is answered at once only while the lease lasts by the clock of now
one lease       when a leader of a later term speaks, nobody holds the lease of an earlier one (section 6.4.1): whether or not
                anybody reads just then
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from cluster.types import Role
from node.app import Node
from node.replica import Replica
from node.tickets import Read

READS_MAX = 4096
LOOK_TICKS = 0.25
"""A node looks at its clock, decides and answers; meanwhile time may pass, and what was decided holds for that look."""


class _Owed(NamedTuple):
    """What a read is owed: a state with that index applied. It came when the replica was in that term."""

    applied: int
    term: int


NOTHING = _Owed(0, 0)


class Leases:
    """`highest` is the highest index applied anywhere, by shard."""

    def __init__(self, breach: Callable[[str], None], highest: Mapping[int, int]) -> None:
        self._breach = breach
        self._highest = highest

    def watch(self, name: str, node: Node, replica: Replica) -> None:
        """From now on every read of that replica is judged."""
        ask, ask_by_lease, answer = replica.read, replica.lease_read, replica.answer
        asked: dict[Read, _Owed] = {}

        def came(each: Read) -> None:
            if len(asked) >= READS_MAX:
                for done in [known for known in asked if known.outcome is not None]:
                    del asked[done]
            asked.setdefault(each, self._owed(replica))

        def watched_read(read: Read) -> None:
            came(read)
            ask(read)

        def watched_lease_read(read: Read) -> None:
            came(read)
            lasts = _holds_lease(node, replica, LOOK_TICKS)
            ask_by_lease(read)
            if not lasts and read.outcome is not None and not read.outcome.code:
                self._breach(
                    f"a lease that is over: {name} answers a read of shard {replica.shard} by it in term {replica.core.term}"
                )

        def watched_answer(read: Read) -> None:
            owed = asked.pop(read, NOTHING)
            if read.outcome is None:
                self._answers(name, replica, owed)
            answer(read)

        replica.read = watched_read  # type: ignore[method-assign]
        replica.lease_read = watched_lease_read  # type: ignore[method-assign]
        replica.answer = watched_answer  # type: ignore[method-assign]

    def _owed(self, replica: Replica) -> _Owed:
        core = replica.core
        committed = core.commit_index if core.role is Role.LEADER else 0
        return _Owed(max(committed, self._highest.get(replica.shard, 0)), core.term)

    def _answers(self, name: str, replica: Replica, owed: _Owed) -> None:
        core = replica.core
        if core.applied_index < owed.applied:
            self._breach(
                f"a read of the past: {name} answers one of shard {replica.shard} in term {core.term} with {core.applied_index} "
                f"applied, and {owed.applied} was applied somewhere or committed here when it came"
            )
        if core.term == owed.term and core.role is Role.LEADER and core.commit_index < core.term_start:
            self._breach(
                f"an early read: {name} answers one of shard {replica.shard}, and nothing of term {core.term} is committed"
            )

    def elected(self, name: str, shard: int, term: int, nodes: Iterable[tuple[str, Node]]) -> None:
        """A leader of `term` on `name` speaks for the first time."""
        for other, node in nodes:
            replica = node.shards.replicas.get(shard)
            if other == name or replica is None or replica.core.role is not Role.LEADER or replica.core.term >= term:
                continue
            if _holds_lease(node, replica):
                self._breach(
                    f"two leases: {name} leads shard {shard} in term {term}, and {other} still holds the lease of term "
                    f"{replica.core.term}"
                )


def _holds_lease(node: Node, replica: Replica, grace_ticks: float = 0.0) -> bool:
    """Now, which is after the ticks that are due; or so long before."""
    core = replica.core
    pump = node.pump
    ticks = (pump._clock.monotonic() - pump._ticked_at) * 1000 / pump._limits.tick_ms
    due = int(max(0.0, ticks - grace_ticks))
    core.clock += due
    try:
        return core.lease_read_index() is not None
    finally:
        core.clock -= due
