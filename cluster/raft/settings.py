"""The bounds of a core, in ticks, entries and bytes; a copy of the rows of `cluster.limits` that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.limits import Limits


@dataclass(slots=True)
class RaftSettings:
    election_ticks_min: int
    election_ticks_max: int
    heartbeat_ticks: int
    idle_ticks: int
    append_entries_max: int
    append_bytes_max: int
    inflight_messages_max: int
    inflight_bytes_max: int
    lease_drift_percent: int
    log_entries_kept_max: int
    log_bytes_kept_max: int
    log_bytes_held_max: int

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_ticks < self.election_ticks_min < self.election_ticks_max
        assert self.append_entries_max > 0 and self.append_bytes_max > 0
        assert self.inflight_messages_max > 0 and self.inflight_bytes_max > 0
        assert self.idle_ticks > 0 and self.log_entries_kept_max > 0 and self.log_bytes_kept_max > 0
        assert 0 < self.lease_drift_percent < 50

    @property
    def lease_ticks(self) -> int:
        """How long after a message was sent the leader lease of its acknowledgement lasts. One tick less than the
        promise of a voter, whose first tick may come right after the message, and less again by the drift bound."""
        return (self.election_ticks_min - 1) * (100 - self.lease_drift_percent) // 100

    @classmethod
    def from_limits(cls, limits: Limits) -> RaftSettings:
        return cls(**{name: getattr(limits, name) for name in cls.__dataclass_fields__})
