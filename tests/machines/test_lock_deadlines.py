"""The queue of deadlines: exact whatever is renewed or dropped, and no larger than what lives."""

from __future__ import annotations

from random import Random

from node.machines.lock_deadlines import Deadlines


def test_the_earliest_is_exact() -> None:
    chance = Random(1)
    things: dict[int, list[int]] = {}
    ends: Deadlines[int, list[int]] = Deadlines(things, lambda thing: thing[0])
    for _ in range(3000):
        key, due_ms = chance.randint(0, 20), chance.randint(0, 500)
        if key not in things:
            things[key] = [due_ms]
            ends.push(key)
        elif chance.random() < 0.5:
            things[key][0] += due_ms  # put off, and nobody is told
        else:
            del things[key]
        first = min(((thing[0], key) for key, thing in things.items()), default=None)
        now_ms = chance.randint(0, 1000)
        assert ends.due(now_ms) == (first is not None and first[0] <= now_ms)
        assert chance.random() < 0.5 or ends.earliest() == first


def test_what_was_to_last_for_a_day_does_not_stay_for_it() -> None:
    things: dict[int, int] = {}
    ends: Deadlines[int, int] = Deadlines(things, lambda due_ms: due_ms)
    for key in range(10_000):
        things[key] = 86_400_000 + key
        ends.push(key)
        if key >= 5:
            del things[key - 5]
    assert len(ends._heap) < 100 and ends.earliest() == (86_400_000 + 9995, 9995)
