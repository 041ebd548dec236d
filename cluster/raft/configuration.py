"""Who votes in a shard, and who follows: configurations and the lawful steps between them (thesis, chapter 4).

A configuration takes effect where it stands in the log, not when it is committed (section 4.1). Learners receive everything and
count for nothing. Voters change by joint consensus (section 4.3; paper, section 6): while `outgoing` is not empty, elections and
commits need a majority of `voters` and one of `outgoing`. `version` is that of the shard's placement in the map, for whose
sake the change is made; it never goes back, so that a leader with an old map undoes nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_COUNTS = struct.Struct("<BQIII")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Configuration:
    """Replica ids, each list without repetition. Without voters only at a learner that has not heard of any yet."""

    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    version: int = 0

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def members(self) -> tuple[int, ...]:
        """Everybody who gets messages, each once, voters first."""
        return tuple(dict.fromkeys((*self.voters, *self.outgoing, *self.learners)))

    def votes(self, replica: int) -> bool:
        """Whether it may vote, campaign and be counted."""
        return replica in self.voters or replica in self.outgoing

    def left(self) -> Configuration:
        """What follows a joint configuration."""
        assert self.joint
        return Configuration(self.voters, self.learners, (), self.version)

    def __str__(self) -> str:
        """As etcd prints it: both majorities, then who counts for nothing."""
        parts = [_ids(self.voters) + (f"&&{_ids(self.outgoing)}" if self.outgoing else "")]
        parts += [f"learners={_ids(self.learners)}"] if self.learners else []
        parts += [f"version={self.version}"] if self.version else []
        return " ".join(parts)

    def encode(self) -> bytes:
        """The payload of a CONFIG entry; also kept with the state, as of its applied index."""
        ids = (*self.voters, *self.learners, *self.outgoing)
        counts = (len(self.voters), len(self.learners), len(self.outgoing))
        return _COUNTS.pack(_FORMAT, self.version, *counts) + struct.pack(f"<{len(ids)}Q", *ids)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """ValueError when it is none."""
        try:
            form, version, voters, learners, outgoing = _COUNTS.unpack_from(data)
            ids = struct.unpack_from(f"<{voters + learners + outgoing}Q", data, _COUNTS.size)
        except struct.error as error:
            raise ValueError(f"configuration: {error}") from None
        if form != _FORMAT or len(data) != _COUNTS.size + 8 * len(ids):
            raise ValueError(f"configuration: format {form}, {len(data)} bytes")
        return cls(ids[:voters], ids[voters : voters + learners], ids[voters + learners :], version)


def _ids(ids: tuple[int, ...]) -> str:
    return f"({' '.join(map(str, ids))})"


def problem_with_change(old: Configuration, new: Configuration) -> str:
    """Why `new` may not follow `old`; "" when it may. One step changes the learners, or enters a joint configuration, or leaves
    one: two majorities of configurations that follow one another always meet."""
    lists = (new.voters, new.learners, new.outgoing)
    if any(len(set(ids)) < len(ids) or 0 in ids for ids in lists) or set(new.voters) & set(new.learners):
        return f"{new} names a replica twice"
    if not new.voters:
        return f"{new} has no voter"
    if set(new.learners) & set(new.outgoing):
        return f"{new}: who leaves the voters is no learner before the change is over"
    if new.version < old.version:
        return f"version {new.version} goes back from {old.version}"
    if old.joint:
        return "" if new == old.left() else f"{old} is joint: it has to be left first"
    if new.joint:
        return "" if set(new.outgoing) == set(old.voters) else f"{new} does not come from the voters {old.voters}"
    return "" if set(new.voters) == set(old.voters) else f"{new} changes voters without a joint configuration"
