"""Deadlocks that were told: each is a cycle of those who wait for each other, and who is told it is in it.

A cycle reads "a: x -> y, b: y -> x": x waits for a, which y holds, and so on; owners are leases in hexadecimal. It convicts only where
somebody in it surely did not wait, or hold, while the one who was told it was asking.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

from chaos.checkers.lock_holds import NEVER_NS, Facts, ends
from chaos.history import Operation

STEP = re.compile(r"(.+): ([0-9a-f]+) -> ([0-9a-f]+)")

Claims = dict[tuple[str, int], list[Operation]]
"""Who asked for what: by (name, lease)."""


class Step(NamedTuple):
    name: str
    waiter: int
    holder: int


def check_deadlocks(facts: Facts) -> None:
    claims: Claims = defaultdict(list)
    for each in facts.operations:
        if each.f == "acquire" and each.asked is not None:
            claims[each.key, each.asked.lease].append(each)
    for each in facts.operations:
        if each.f == "acquire" and each.type == "fail" and each.error == "DEADLOCK" and each.asked is not None:
            cycle = each.told.cycle if each.told is not None else ""
            wrong = _wrong(facts, claims, each, cycle)
            if wrong:
                text = f"lease {each.asked.lease:x} is told of the deadlock {cycle!r}: {wrong}"
                facts.problem("deadlock", each.key, text)


def parse(cycle: str) -> list[Step] | None:
    """None where it is no list of steps."""
    found = [STEP.fullmatch(step) for step in cycle.split(", ")]
    steps = [Step(each[1], int(each[2], 16), int(each[3], 16)) for each in found if each is not None]
    return steps if len(steps) == len(found) else None


def _wrong(facts: Facts, claims: Claims, told: Operation, cycle: str) -> str:
    assert told.asked is not None
    lease, steps = told.asked.lease, parse(cycle)
    if not steps:
        return "no cycle is named"
    if any(one.holder != other.waiter for one, other in pairwise(steps)) or steps[-1].holder != steps[0].waiter:
        return "it is not closed"
    if len({step.waiter for step in steps}) < max(2, len(steps)):
        return "nobody waits for itself"
    if not any((step.name, step.waiter) == (told.key, lease) for step in steps):
        return "it has no part in it"
    for name, waiter, holder in steps:
        if waiter != lease and not any(_lasts(each, told) and _waits(each) for each in claims.get((name, waiter), ())):
            return f"lease {waiter:x} did not wait for {name}"
        if not any(_may_hold(facts, each, told) for each in claims.get((name, holder), ())):
            return f"lease {holder:x} did not hold {name}"
    return ""


def _waits(acquire: Operation) -> bool:
    return acquire.asked is not None and acquire.asked.wait_ms > 0


def _lasts(acquire: Operation, told: Operation) -> bool:
    """Was it perhaps under way at some moment of the other one? What nobody saw the end of may last for ever."""
    done_ns = NEVER_NS if acquire.type == "info" or acquire.completed_ns is None else acquire.completed_ns
    return acquire.invoked_ns < (told.completed_ns or NEVER_NS) and done_ns > told.invoked_ns


def _may_hold(facts: Facts, acquire: Operation, told: Operation) -> bool:
    """Did it perhaps hold at some moment of the other one?"""
    if acquire.invoked_ns >= (told.completed_ns or NEVER_NS):
        return False
    if acquire.type != "ok":
        return _lasts(acquire, told)
    assert acquire.asked is not None
    for end in facts.ends[acquire.asked.lease, acquire.shard or 0]:
        same = ends(end, acquire.key, acquire.asked.attempt)
        done_ns = end.completed_ns if end.type == "ok" else None
        if same and end.invoked_ns >= (acquire.completed_ns or 0) and done_ns is not None and done_ns < told.invoked_ns:
            return False
    return True
