"""What leaders may answer reads from.

recent reads    a linearizable read is answered from a state that holds whatever any replica had applied when it came, and
                a lease read too (Raft thesis, section 6.4)
one lease       when a leader of a later term speaks, nobody holds the lease of an earlier one (section 6.4.1): whether or not
                anybody reads just then
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cluster.types import Role
from node.app import Node
from node.replica import Replica
from node.tickets import Read

READS_MAX = 4096


class Leases:
    """`highest` is the highest index applied anywhere, by shard."""

    def __init__(self, breach: Callable[[str], None], highest: Mapping[int, int]) -> None:
        self._breach = breach
        self._highest = highest

    def watch(self, name: str, replica: Replica) -> None:
        """From now on every read of that replica is judged."""
        ask, ask_by_lease, answer = replica.read, replica.lease_read, replica.answer
        shard, highest = replica.shard, self._highest
        asked: dict[Read, int] = {}

        def came(each: Read) -> None:
            if len(asked) >= READS_MAX:
                for done in [known for known in asked if known.outcome is not None]:
                    del asked[done]
            asked.setdefault(each, highest.get(shard, 0))

        def watched_read(read: Read) -> None:
            came(read)
            ask(read)

        def watched_lease_read(read: Read) -> None:
            came(read)
            ask_by_lease(read)

        def watched_answer(read: Read) -> None:
            owed = asked.pop(read, 0)
            core = replica.core
            if core.applied_index < owed and read.outcome is None:
                self._breach(
                    f"a read of the past: {name} answers one of shard {shard} in term {core.term} with {core.applied_index} applied, "
                    f"and {owed} was applied somewhere when it came"
                )
            answer(read)

        replica.read = watched_read  # type: ignore[method-assign]
        replica.lease_read = watched_lease_read  # type: ignore[method-assign]
        replica.answer = watched_answer  # type: ignore[method-assign]

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


def _holds_lease(node: Node, replica: Replica) -> bool:
    """Now, which is after the ticks that are due."""
    core = replica.core
    pump = node.pump
    due = int((pump._clock.monotonic() - pump._ticked_at) * 1000 / pump._limits.tick_ms)
    core.clock += due
    try:
        return core.lease_read_index() is not None
    finally:
        core.clock -= due
