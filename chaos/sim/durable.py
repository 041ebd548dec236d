"""What a node takes for durable in its state, against what the medium would still hold if all power failed now.

    durable-applied     never beyond what is durable, and no log is released that is needed beyond it

So a flush that promises too much, or a segment that goes too early, is seen at once, and not only where a crash follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chaos.sim.disk import SimState
from node.app import Node
from node.storage.layout import header_key, read_header

Applied = Mapping[int, tuple[int, int]]


class Durable:
    def __init__(self, breach: Callable[[str], None]) -> None:
        self._breach = breach

    def watch(self, node: Node) -> None:
        """From now on every release of its log is judged."""
        log, release = node.log, node.log.release

        def watched(durable_applied: Applied) -> int:
            before = {segment.number: segment.highest for segment in log._segments}
            released = release(durable_applied)
            for segment in log._segments:
                before.pop(segment.number, None)
            for highest in before.values():
                self._released(node, highest)
            return released

        log.release = watched  # type: ignore[method-assign]

    def _released(self, node: Node, highest: Mapping[tuple[int, int], int]) -> None:
        for (shard, owner), index in highest.items():
            replica = node.shards.replicas.get(shard)
            if replica is None or replica.core.replica != owner or replica.installing:
                continue
            applied, needed = self._applied(node, shard, owner), min(index, replica.core.log.persisted_index)
            if needed > applied:
                self._breach(
                    f"{node.config.node} has lost what it held for durable: shard {shard} has {applied} applied and durable, and "
                    f"its log is released up to {needed}"
                )

    def look(self, node: Node) -> None:
        """At any moment."""
        for shard, (owner, index) in node.state.durable_applied.items():
            replica = node.shards.replicas.get(shard)
            if replica is None or replica.core.replica != owner or replica.installing:
                continue
            applied = self._applied(node, shard, owner)
            if index > applied:
                self._breach(
                    f"{node.config.node} has lost what it held for durable: shard {shard} has {applied} applied and durable, and "
                    f"takes {index} for it"
                )

    def _applied(self, node: Node, shard: int, owner: int) -> int:
        engine = node.state.engine
        assert isinstance(engine, SimState), "the simulator's nodes have its state engine"
        value = engine.durable(header_key(shard))
        header = read_header(value, shard) if value is not None else None
        return header.applied_index if header is not None and header.replica == owner else 0
