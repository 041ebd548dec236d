"""The lock machine against a model: random commands, joined as a leader joins them, pulses and restarts, with the smallest bounds."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from cluster.errors import Code
from cluster.limits import Limits
from proto.gen.entry_pb2 import Request
from proto.gen.lock_pb2 import (
    EXCLUSIVE,
    SEMAPHORE,
    SHARED,
    LockAcquire,
    LockCheck,
    LockCommand,
    LockEndLease,
    LockEvent,
    LockForceRelease,
    LockList,
    LockQuery,
    LockRelease,
    LockRenew,
    LockResult,
)
from tests.machines.lock_model import LockModel
from tests.machines.shard_world import BOUNDS, ShardWorld, tiny

NAMES = ("a", "a\x7e", "b", "ü")
STEP = re.compile(r"(\S+): (\S+) -> (\S+)")
ENTRIES = 250

# What a run must have met, all seeds together; else the random numbers drive past what they should look at.
MET = (
    *("DEADLOCK", "INVALID_ARGUMENT", "LOCK_MODE_DIFFERS", "LOCK_TABLE_FULL", "NOT_HOLDER"),
    *("TOO_MANY_WAITERS", "UNKNOWN_LEASE", "granted", "waiting", "released"),
    *("told CANCELLED", "told DEADLOCK", "told GRANTED", "told LOST", "told TIMED_OUT"),
    *("passing", "delayed", "several granted at once", "several pulses", "ended in part"),
)


def random_limits(chance: Random) -> Limits:
    bounds = {each.name: each.metadata["test_range"] for each in fields(Limits)}
    return tiny(**{name: chance.randint(*ends) for name, ends in bounds.items() if BOUNDS.fullmatch(name)})


def random_acquire(chance: Random) -> LockAcquire:
    asked = LockAcquire(name=chance.choice(NAMES), lease=chance.randint(1, 6), attempt=chance.randint(0, 9))
    asked.owner = chance.choice(("x", "y")) if chance.random() < 0.1 else f"w{asked.lease}"
    asked.mode = chance.choice((EXCLUSIVE, EXCLUSIVE, SHARED, SHARED)) if asked.name != "b" else SEMAPHORE
    if chance.random() < 0.05:
        asked.mode = chance.choice((EXCLUSIVE, SEMAPHORE))
    if asked.mode == SEMAPHORE:
        asked.capacity, asked.permits = chance.choice((3, 3, 3, 2)), chance.randint(0, 2)
    asked.ttl_ms = chance.choice((20, 200, 1000))
    asked.wait_ms = chance.choice((0, 50, 500, 5000, 5000))
    asked.delay_ms = chance.choice((0, 0, 0, 40, 300))
    asked.reentrant, asked.new_lease = chance.random() < 0.2, chance.random() < 0.9
    asked.metadata = chance.choice((b"", b"\0of x"))
    return asked


def random_release(chance: Random, model: LockModel) -> LockRelease:
    asked = LockRelease(name=chance.choice(NAMES), lease=chance.randint(1, 6), attempt=chance.randint(0, 9))
    if model.rows and chance.random() < 0.8:
        row = chance.choice(model.rows)
        asked.name, asked.lease, asked.attempt = row.name, row.lease, row.attempt
        if chance.random() < 0.1:
            asked.attempt += 1
    asked.reason, asked.end_lease = chance.choice(("", "", "", "a: x -> y")), chance.random() < 0.5
    return asked


def random_command(chance: Random, model: LockModel) -> LockCommand:
    kind = chance.choices(("acquire", "release", "renew", "end", "force"), (10, 4, 3, 0.5, 0.5))[0]
    if kind == "acquire":
        return LockCommand(acquire=random_acquire(chance))
    if kind == "release":
        return LockCommand(release=random_release(chance, model))
    if kind == "renew":
        return LockCommand(renew=LockRenew(lease=chance.randint(1, 6), ttl_ms=chance.choice((20, 200, 1000))))
    if kind == "end":
        return LockCommand(end_lease=LockEndLease(lease=chance.randint(1, 6), unclean=chance.random() < 0.5))
    name = chance.choice(NAMES)
    tokens = [0, 1, *(row.token for row in model.held(name))]
    return LockCommand(force_release=LockForceRelease(name=name, token=chance.choice(tokens)))


def lock_request(command: LockCommand, session: int = 0, sequence: int = 0, low_water: int = 0) -> Request:
    body = command.SerializeToString()
    return Request(capability="lock", session=session, sequence=sequence, low_water=low_water, body=body)


def joined(commands: list[LockCommand]) -> list[LockCommand]:
    """Those that a leader would join into one entry."""
    taken: list[LockCommand] = []
    names: set[str] = set()
    for command in commands:
        which = command.WhichOneof("command")
        if which == "end_lease":
            return taken or [command]
        name = "" if which == "renew" else getattr(command, str(which)).name
        if name not in names:
            names |= {name} - {""}
            taken.append(command)
    return taken


class Drive:
    """The machine and the model, side by side."""

    def __init__(self, seed: int, met: Counter[str]) -> None:
        self.chance = Random(seed)
        self.met = met
        limits = random_limits(self.chance)
        self.world = ShardWorld(limits)
        self.model = LockModel(limits)

    def step(self) -> None:
        chance, world = self.chance, self.world
        kind = chance.choices(("entry", "time", "pulse", "restart", "crowd"), (10, 5, 3, 1, 0.5))[0]
        if kind == "entry":
            self.entry(joined([random_command(chance, self.model) for _ in range(chance.randint(1, 3))]))
        elif kind == "time":
            world.time_ms += chance.choice((1, 9, 50, 100, 400))
        elif kind == "pulse":
            self.expire()
        elif kind == "restart":
            self.restart()
        else:
            self.crowd()

    def crowd(self) -> None:
        """Many wait to share what one holds, and all get it at once: their tokens run ahead of the log."""
        for lease in (1, 2, 3, 4, 5):
            asked = LockAcquire(name="a", lease=lease, attempt=20, owner=f"w{lease}", ttl_ms=1000, new_lease=True)
            asked.mode, asked.wait_ms = (SHARED, 5000) if lease > 1 else (EXCLUSIVE, 0)
            self.entry([LockCommand(acquire=asked)])
        take = LockCommand(force_release=LockForceRelease(name="a"))
        self.entry([take])
        for _ in range(2):
            if self.chance.random() < 0.5:
                self.restart()
            again = LockAcquire(name="a", lease=6, attempt=self.chance.randint(20, 30), owner="w6", ttl_ms=1000)
            again.mode, again.new_lease = SHARED, True
            self.entry([self.chance.choice((take, LockCommand(acquire=again)))])

    def restart(self) -> None:
        self.world.restart()
        self.compare()

    def entry(self, commands: list[LockCommand]) -> None:
        world, model = self.world, self.model
        model.begin()
        outcomes = world.entry(*(lock_request(command) for command in commands))
        for command, outcome in zip(commands, outcomes, strict=True):
            expected = model.apply(command, world.index, world.time_ms)
            if isinstance(expected, Code):
                assert outcome.code == expected, outcome
                if expected == Code.DEADLOCK:
                    check_cycle(outcome.message, command.acquire)
                self.met[expected.name] += 1
                continue
            assert outcome.code == Code.OK, outcome
            found = LockResult.FromString(outcome.body)
            found.ClearField("holder")
            assert found == expected, command
            self.met.update(name for name in ("granted", "waiting", "released") if getattr(found, name))
        self.compare()

    def expire(self) -> None:
        """Pulses as a leader proposes them, until none is due."""
        world, model = self.world, self.model
        pulses = 0
        while world.applier.pulse_due(world.time_ms):
            model.begin()
            world.pulse()
            model.pulse(world.index, world.time_ms)
            self.compare()
            pulses += 1
        self.met["several pulses"] += pulses > 1
        assert not model.due(world.time_ms)

    # ---- what both say

    def compare(self) -> None:
        world, model = self.world, self.model
        events = world.told()
        told = {(e.lease, e.attempt): (e.kind, e.token) for e in events if e.kind != LockEvent.CHANGED}
        assert told == model.told
        states = {event.name: event.holder.owner for event in events if event.kind == LockEvent.CHANGED}
        assert states == {n: held[0].owner if (held := model.held(n)) else "" for n in model.changed}
        for name in NAMES:
            self.compare_lock(name)
        assert self.listed() == sorted({row.name for row in model.rows} | set(model.delays))
        granted = [LockEvent.Kind.Name(kind) for kind, _ in model.told.values()]
        self.met.update(f"told {kind}" for kind in granted)
        self.met["several granted at once"] += granted.count("GRANTED") > 1
        self.met["passing"] += len(model.passing)
        self.met["delayed"] += len(model.delays)
        self.met["ended in part"] += model.ended_in_part

    def compare_lock(self, name: str) -> None:
        model, now_ms = self.model, self.world.applier.time_ms
        held, queue = model.held(name), model.queue(name)
        found = self.query(LockQuery(get=name)).locks[0]
        assert (found.holders_count, found.waiters_count) == (len(held), len(queue))
        assert found.delay_remaining_ms == max(0, model.delays.get(name, 0) - now_ms)
        listed = [(each.owner, each.token, each.remaining_ms) for each in found.holders]
        expected = [(r.owner, r.token, max(0, model.leases[r.lease] - now_ms)) for r in held]
        assert not any(each.lease or each.attempt for each in (*found.holders, *found.waiters))
        assert listed == expected[: len(listed)] and len(listed) <= self.world.limits.lock_list_max
        for row in held + queue:
            stands = self.query(LockQuery(check=LockCheck(name=name, lease=row.lease, attempt=row.attempt))).attempt
            assert (stands.granted, stands.token, stands.waiting) == (row.token > 0, row.token, not row.token)
            assert stands.waiters == (0 if row.token else queue.index(row))

    def listed(self) -> list[str]:
        names: list[str] = []
        start = ""
        while True:
            page = self.query(LockQuery(list=LockList(start=start)))
            names += [lock.name for lock in page.locks]
            if not page.more:
                return names
            assert page.next > start
            start = page.next

    def query(self, asked: LockQuery) -> Any:
        return self.world.applier.query("lock", asked)


def check_cycle(message: str, asked: LockAcquire) -> None:
    """It is closed, and begins with who asked."""
    steps = [STEP.fullmatch(step) for step in message.split(", ")]
    pairs = [step.groups() for step in steps if step is not None]
    assert len(pairs) == len(steps) >= 2, message
    assert pairs[0][:2] == (asked.name, asked.owner) and pairs[-1][2] == asked.owner, message
    assert all(one[2] == following[1] for one, following in pairwise(pairs)), message


@pytest.mark.parametrize("first_seed", [0, 15, 30])
def test_the_machine_does_what_the_model_says(first_seed: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + 15):
        drive = Drive(seed, met)
        for number in range(ENTRIES):
            try:
                drive.step()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, step {number}: {error}") from error
    assert not [what for what in MET if not met[what]], met
