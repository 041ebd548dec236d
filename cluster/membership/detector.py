"""Who is heard, who is suspect, who is down: the meta leader's judgement of the members, with hysteresis.

Pure: when a member was last heard and what time it is are arguments (monotonic seconds). Laws:

* Silence counts only while the detector itself was awake. A step between two looks that is longer than a few of them counts as one look: a
  detector that was paused, or a process that was stopped, blames nobody for what it did not hear meanwhile.
* A new detector starts from zero: nobody is silent before it began to listen. It belongs to one leadership of meta, whose leader
  has a quorum or loses its office within an election timeout, so who hears nobody judges nobody.
* Nobody becomes down who was not suspect before, and nobody comes back who was not heard for a while without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.limits import Limits
from cluster.membership.state import MemberState

PAUSE_LOOKS = 4
"""A step of more looks than this was a pause."""

GAP_HEARTBEATS = 3
"""So many heartbeats may be late before a run of hearing is broken."""


@dataclass(slots=True)
class _Heard:
    """Of one member, in seconds that the detector was awake."""

    last: float  # heard, or first asked about
    run: float | None = None  # since when it is heard without a gap


class Detector:
    """`look_s` is how often `look` is meant to be called."""

    def __init__(self, limits: Limits) -> None:
        self.look_s = limits.node_heartbeat_ms / 1000
        self._gap_s = GAP_HEARTBEATS * limits.node_heartbeat_ms / 1000
        self._suspect_s = limits.suspect_after_ms / 1000
        self._down_s = limits.down_after_ms / 1000
        self._again_s = limits.heard_again_ms / 1000
        self._looked_at: float | None = None
        self._awake_s = 0.0
        self._told: dict[str, float] = {}
        self._heard: dict[str, _Heard] = {}

    def heard(self, node: str, at: float) -> None:
        """When a word of `node` last came; minus infinity for never."""
        self._told[node] = at

    def look(self, now: float, members: Mapping[str, MemberState]) -> list[tuple[str, MemberState]]:
        """What the members, in the states given, have become by now."""
        before = self._looked_at if self._looked_at is not None else now
        assert now >= before, "the monotonic clock went back"
        step = now - before
        if step > PAUSE_LOOKS * self.look_s:
            step = self.look_s
        self._looked_at = now
        self._awake_s += step
        self._heard = {node: self._heard.get(node) or _Heard(self._awake_s) for node in members}
        changes = []
        for node, state in members.items():
            self._listen(self._heard[node], self._told.get(node, float("-inf")), before, now, step)
            judged = self._judge(state, self._heard[node])
            if judged is not state:
                changes.append((node, judged))
        return changes

    def silent_s(self, node: str) -> float:
        """For how long, awake, nothing was heard of a member as of the last look."""
        return self._awake_s - self._heard[node].last

    def _listen(self, heard: _Heard, at: float, before: float, now: float, step: float) -> None:
        if at > before:
            heard.last = self._awake_s - min(now - at, step)
            if heard.run is None:
                heard.run = heard.last
        elif self._awake_s - heard.last > self._gap_s:
            heard.run = None

    def _judge(self, state: MemberState, heard: _Heard) -> MemberState:
        silent_s = self._awake_s - heard.last
        run_s = heard.last - heard.run if heard.run is not None else 0.0
        match state:
            case MemberState.JOINING if heard.run is not None:
                return MemberState.UP
            case MemberState.UP if silent_s >= self._suspect_s:
                return MemberState.SUSPECT
            case MemberState.SUSPECT if silent_s >= self._down_s:
                return MemberState.DOWN
            case MemberState.SUSPECT | MemberState.DOWN if heard.run is not None and run_s >= self._again_s:
                return MemberState.UP
        return state
