"""What a crash leaves of a replica, and the smallest state machine."""

from __future__ import annotations

from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, HardState, SnapshotPoint
from cluster.types import EntryKind


class Machine:
    """A state machine that remembers all it applied as one number, and the last configuration."""

    def __init__(self, configuration: Configuration, index: int = 0, chain: int = 0) -> None:
        self.configuration = configuration
        self.index = index
        self.chain = chain

    def apply(self, each: Entry) -> None:
        assert each.index == self.index + 1, f"{each!r} applied after {self.index}"
        self.index = each.index
        self.chain = hash((self.chain, each.term, each.kind, int.from_bytes(each.payload, "big")))
        if each.kind == EntryKind.CONFIG:
            self.configuration = Configuration.decode(each.payload)

    def copy(self) -> Machine:
        return Machine(self.configuration, self.index, self.chain)


class Durable:
    """What a crash leaves."""

    def __init__(self, configuration: Configuration) -> None:
        self.hard_state = HardState()
        self.base = SnapshotPoint(0, 0, configuration)
        self.entries: list[Entry] = []
        self.machine = Machine(configuration)

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        if index == self.base.index:
            return self.base.term
        offset = index - self.base.index - 1
        return self.entries[offset].term if 0 <= offset < len(self.entries) else None

    def write(self, each: Entry) -> None:
        assert self.base.index < each.index <= self.last_index + 1, "the log has no holes"
        del self.entries[each.index - self.base.index - 1 :]
        self.entries.append(each)

    def install(self, point: SnapshotPoint, machine: Machine) -> None:
        assert point.configuration == machine.configuration
        self.base = point
        self.entries = []
        self.machine = machine.copy()

    def drop_to(self, index: int) -> None:
        """Segments whose entries the durable state covers are deleted."""
        term = self.term_at(index)
        if index > self.base.index and index <= self.machine.index and term is not None:
            del self.entries[: index - self.base.index]
            self.base = SnapshotPoint(index, term, self.base.configuration)
