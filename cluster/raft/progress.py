"""What a leader knows of one voter, and how much it may send it.

PROBE: at most one append is on its way, until an answer shows where the logs meet. REPLICATE: appends are pipelined
inside a window of messages and bytes. SNAPSHOT: nothing is sent until the state has arrived. After etcd's raft.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum


class ProgressState(StrEnum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """`match` is the highest index known to be durable there, `next` the first not yet sent. `acked` is the highest
    stamp of a message of this leader that was answered, `sent` of one that was sent, `appended` of an append."""

    __slots__ = (
        "acked",
        "appended",
        "held",
        "inflight",
        "inflight_bytes",
        "match",
        "next",
        "paused",
        "sent",
        "snapshot",
        "state",
    )

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.state = ProgressState.PROBE
        self.paused = False  # a probe is out, or there is no use in sending one before the next answer
        self.snapshot = 0  # its index while in SNAPSHOT
        self.held = 0  # what follows this index is kept for it: from a snapshot until it has caught up
        self.acked = 0
        self.sent = 0
        self.appended = 0
        self.inflight: deque[tuple[int, int]] = deque()  # last index and bytes of each append, oldest first
        self.inflight_bytes = 0

    def __repr__(self) -> str:
        text = f"{self.state.value} match={self.match} next={self.next}"
        if self.inflight:
            text += f" inflight={len(self.inflight)}"
        if self.snapshot:
            text += f" snapshot={self.snapshot}"
        return text + (" paused" if self.paused else "")

    def _become(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.snapshot = 0
        self.inflight.clear()
        self.inflight_bytes = 0

    def become_probe(self, next_index: int = 0) -> None:
        """From `next_index`, or from the first index not known to match."""
        self._become(ProgressState.PROBE)
        self.next = max(next_index, self.match + 1)

    def become_replicate(self) -> None:
        self._become(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._become(ProgressState.SNAPSHOT)
        self.snapshot = self.held = index

    def sent_append(self, last_index: int, size: int) -> None:
        """Entries up to `last_index` left, `size` bytes of them."""
        self.next = last_index + 1
        self.inflight.append((last_index, size))
        self.inflight_bytes += size

    def accepted(self, index: int) -> bool:
        """Whether that is news. Frees the part of the window that `index` covers."""
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        if self.held:
            self.held = max(self.held, index)
        if self.next <= index:
            self.next = index + 1
        return True

    def refused(self, index: int, go_on: int) -> bool:
        """The append after `index` was refused; `go_on` is the highest index where the logs may meet. False for an
        answer that is out of date."""
        if self.state is ProgressState.REPLICATE:
            if index <= self.match:
                return False
            self.become_probe()
            return True
        if self.state is not ProgressState.PROBE or self.next - 1 != index:
            return False
        self.next = max(min(index, go_on + 1), self.match + 1)
        self.paused = False
        return True
