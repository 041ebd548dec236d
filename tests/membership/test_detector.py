"""The detector against a scripted cluster: who falls silent is noticed, who was merely not listened to is not blamed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.limits import DEFAULT
from cluster.membership.detector import Detector
from cluster.membership.state import MemberState, lawful

UP, JOINING, SUSPECT, DOWN, LEAVING, REMOVED = MemberState
LOOK_S = DEFAULT.node_heartbeat_ms / 1000
SUSPECT_S = DEFAULT.suspect_after_ms / 1000
DOWN_S = DEFAULT.down_after_ms / 1000
AGAIN_S = DEFAULT.heard_again_ms / 1000


class Watched:
    """A detector that looks as often as it should, and a map that takes its word."""

    def __init__(self, **states: MemberState) -> None:
        self.detector = Detector(DEFAULT)
        self.states = dict(states)
        self.now = 1000.0
        self.history: list[tuple[float, str, MemberState]] = []
        self.look()

    def look(self) -> None:
        for node, state in self.detector.look(self.now, self.states):
            assert lawful(self.states[node], state)
            self.states[node] = state
            self.history.append((self.now, node, state))

    def run(self, seconds: float, *speaking: str) -> None:
        """Those who speak are heard just before each look."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += LOOK_S
            for node in speaking:
                self.detector.heard(node, self.now - 0.01)
            self.look()

    def pause(self, seconds: float) -> None:
        """The process stood still: it looks before it has read what came meanwhile."""
        self.now += seconds
        self.look()

    def became(self, node: str, state: MemberState) -> float:
        return next(at for at, name, new in self.history if (name, new) == (node, state))


def test_who_is_silent_is_suspected_and_then_down_and_comes_back_when_heard_for_a_while() -> None:
    watched = Watched(a=UP, b=UP)
    watched.run(10, "a", "b")
    assert not watched.history
    silent_from = watched.now
    watched.run(DOWN_S + 2, "a")
    assert watched.became("b", SUSPECT) - silent_from == pytest.approx(SUSPECT_S, abs=LOOK_S)
    assert watched.became("b", DOWN) - silent_from == pytest.approx(DOWN_S, abs=LOOK_S)
    heard_from = watched.now
    watched.run(AGAIN_S + 1, "a", "b")
    assert watched.became("b", UP) - heard_from >= AGAIN_S
    assert watched.states == {"a": UP, "b": UP} and len(watched.history) == 3


def test_a_new_member_is_up_when_it_is_first_heard_and_waits_for_ever_until_then() -> None:
    watched = Watched(a=JOINING)
    watched.run(3 * DOWN_S)
    assert watched.states["a"] is JOINING
    watched.run(LOOK_S, "a")
    assert watched.states["a"] is UP


def test_a_suspect_that_is_heard_now_and_then_stays_one() -> None:
    """Neither up, since there are gaps, nor down, since it is heard."""
    watched = Watched(a=SUSPECT)
    for _ in range(40):
        watched.run(AGAIN_S / 2, "a")
        watched.run(SUSPECT_S * 1.5)
    assert watched.states["a"] is SUSPECT and not watched.history


def test_nobody_is_blamed_for_the_detectors_own_pause() -> None:
    watched = Watched(a=UP, b=SUSPECT)
    watched.run(AGAIN_S / 2, "a", "b")
    for _ in range(40):
        watched.pause(DOWN_S * 2)
        watched.run(1, "a")
    assert watched.states["a"] is UP
    awake_s = 40 * (1 + LOOK_S)
    assert watched.states["b"] is SUSPECT and awake_s < DOWN_S, "time counts only while it is awake"
    watched.run(DOWN_S - awake_s + 1, "a")
    assert watched.states["b"] is DOWN


def test_a_new_detector_starts_from_zero() -> None:
    watched = Watched(a=UP)
    watched.detector.heard("a", watched.now - 3600)
    watched.run(SUSPECT_S - LOOK_S)
    assert watched.states["a"] is UP
    watched.run(2 * LOOK_S)
    assert watched.states["a"] is SUSPECT


def test_who_leaves_is_left_alone_and_who_is_removed_is_forgotten() -> None:
    watched = Watched(a=LEAVING, b=UP)
    watched.run(2 * DOWN_S, "b")
    assert watched.states["a"] is LEAVING and watched.detector.silent_s("a") >= 2 * DOWN_S - LOOK_S
    del watched.states["a"]
    watched.run(LOOK_S, "b")
    with pytest.raises(KeyError):
        watched.detector.silent_s("a")
    watched.states["a"] = UP
    watched.run(SUSPECT_S / 2, "b")
    assert watched.states["a"] is UP, "it begins anew"


def test_time_that_goes_back_is_a_bug() -> None:
    detector = Detector(DEFAULT)
    detector.look(5.0, {})
    with pytest.raises(AssertionError, match="went back"):
        detector.look(4.0, {})


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_who_speaks_whenever_it_can_be_heard_stays_up_whatever_happens_to_the_detector(data: st.DataObject) -> None:
    limits = replace(DEFAULT, node_heartbeat_ms=data.draw(st.sampled_from([50, 250])), suspect_after_ms=2000)
    detector = Detector(limits)
    states = {"a": UP, "dead": UP}
    now, awake = 0.0, 0.0
    for _ in range(data.draw(st.integers(5, 60))):
        late = data.draw(st.integers(1, 3))  # looks later than it should
        paused = data.draw(st.sampled_from([0.0, 0.0, 1.0, 30.0, 3600.0]))
        now += late * detector.look_s + paused
        awake += min(late * detector.look_s + paused, 4 * detector.look_s)
        if not paused:
            detector.heard("a", now - 0.001)
        for node, state in detector.look(now, states):
            assert node == "dead", "it spoke whenever it was listened to"
            assert awake >= limits.suspect_after_ms / 1000 - 1e-9
            assert state is not DOWN or awake >= limits.down_after_ms / 1000 - 1e-9
            states[node] = state
        if paused:
            now += 0.01
            detector.heard("a", now)  # what came meanwhile is read
            assert not [node for node, _ in detector.look(now, states) if node == "a"]
            awake += 0.01
