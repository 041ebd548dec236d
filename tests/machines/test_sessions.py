"""The session table: a retried request takes effect once, whatever is retried, reordered, evicted, expired or restarted."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cluster.errors import Code
from cluster.limits import DEFAULT, Limits
from node.machines.applier import Outcome
from node.machines.sessions import Sessions
from node.storage.memory import MemoryState
from node.storage.view import ShardState, StateBatch
from proto.gen.entry_pb2 import Request
from proto.gen.kv_pb2 import KvCommand, KvCompare, KvOp, KvResult, KvTransaction
from tests.machines.shard_world import ShardWorld, drawn_limits, increment, kv_request, put, tiny

RECORD_BYTES = 42  # a kept result's key and head


def bump(world: ShardWorld, session: int, sequence: int, low_water: int = 0, key: bytes = b"n") -> Outcome:
    return world.kv(KvCommand(ops=[increment(key, 1)]), session, sequence, low_water)


def number(outcome: Outcome) -> int:
    assert outcome.code == Code.OK, outcome
    return KvResult.FromString(outcome.body).ops[0].number


def same(one: Outcome, other: Outcome) -> bool:
    return (one.code, one.message, one.body, one.index) == (other.code, other.message, other.body, other.index)


def test_a_session_is_named_by_where_it_was_opened() -> None:
    world = ShardWorld(tiny(sessions_max=8))
    first = world.entry(Request(open_session=True), Request(open_session=True))
    assert [outcome.session for outcome in first] == [4096, 4097]
    assert world.open() == 2 * 4096


def test_a_duplicate_gets_the_first_answer_and_changes_nothing() -> None:
    world = ShardWorld(tiny())
    session = world.open()
    first = bump(world, session, 1)
    before = world.contents()
    again = bump(world, session, 1)
    assert number(first) == 1 and same(first, again)
    assert again.index < world.index
    assert world.contents() == before


def test_a_duplicate_in_the_same_entry_is_applied_once() -> None:
    world = ShardWorld(tiny())
    session = world.open()
    request = kv_request(KvCommand(ops=[increment(b"n", 1)]), session, 1)
    first, again = world.entry(request, request)
    assert same(first, again) and world.get(b"n").value == b"1"


def test_the_table_survives_a_restart() -> None:
    world = ShardWorld(tiny())
    session = world.open()
    first = bump(world, session, 2)
    world.restart()
    assert same(bump(world, session, 2), first)
    assert number(bump(world, session, 1)) == 2


def test_sequences_arrive_in_any_order_within_the_window() -> None:
    world = ShardWorld(tiny(session_window=4, session_bytes_max=4096))
    session = world.open()
    assert [number(bump(world, session, sequence)) for sequence in (4, 2, 3, 1)] == [1, 2, 3, 4]
    assert number(bump(world, session, 2)) == 2


def test_beyond_the_window_a_request_is_surely_not_applied() -> None:
    world = ShardWorld(tiny(session_window=4))
    session = world.open()
    before = world.contents()
    refused = bump(world, session, 5)
    assert refused.code == Code.OVERLOADED and "not applied" in refused.message
    assert world.contents() == before
    assert number(bump(world, session, 5, low_water=1)) == 1


def test_the_low_water_mark_drops_results_and_never_goes_back() -> None:
    world = ShardWorld(tiny(session_window=16, session_bytes_max=4096))
    session = world.open()
    for sequence in (1, 2, 3):
        bump(world, session, sequence)
    bump(world, session, 4, low_water=2)
    assert len(world.views["session"].pairs) == 3  # the opening, 3 and 4
    for sequence in (0, 1, 2):
        assert bump(world, session, sequence).code == Code.SESSION_EXPIRED
    assert number(bump(world, session, 5, low_water=1)) == 5
    assert bump(world, session, 2).code == Code.SESSION_EXPIRED
    assert number(bump(world, session, 3)) == 3


def test_a_low_water_mark_never_covers_the_request_that_names_it() -> None:
    world = ShardWorld(tiny())
    session = world.open()
    first = bump(world, session, 3, low_water=2**64 - 1)
    assert number(first) == 1 and same(bump(world, session, 3), first)
    assert bump(world, session, 2).code == Code.SESSION_EXPIRED


def test_a_definite_refusal_is_kept_with_its_message() -> None:
    world = ShardWorld(tiny())
    session = world.open()
    world.put(b"text", b"no number")
    command = KvCommand(
        transaction=KvTransaction(
            compares=[KvCompare(target=KvCompare.VERSION_EQUAL, key=b"free")],
            then_ops=[put(b"new"), increment(b"text", 1)],
        )
    )
    first = world.kv(command, session, 1)
    assert first.code == Code.NOT_A_NUMBER and "then_ops[1]" in first.message
    world.put(b"text", b"1")
    assert same(world.kv(command, session, 1), first)
    assert world.get(b"new").version == 0


def test_results_over_the_bytes_of_a_session_drop_the_oldest() -> None:
    world = ShardWorld(tiny(session_window=16, session_bytes_max=4 * RECORD_BYTES))
    session = world.open()
    for sequence in (2, 3, 4, 5):
        world.kv(KvCommand(ops=[put(b"k")]), session, sequence)
    assert world.kv(KvCommand(ops=[put(b"k")]), session, 2).code == Code.OK
    world.kv(KvCommand(ops=[put(b"k")]), session, 6)
    for sequence in (1, 2):
        assert world.kv(KvCommand(ops=[put(b"k")]), session, sequence).code == Code.SESSION_EXPIRED
    assert world.kv(KvCommand(ops=[put(b"k")]), session, 3).index == 3


def test_a_result_too_large_to_keep_is_answered_once_then_unknown() -> None:
    world = ShardWorld(tiny(session_bytes_max=256, scan_bytes_max=4096))
    session = world.open()
    world.put(b"big", b"v" * 300)
    read = KvCommand(transaction=KvTransaction(then_ops=[increment(b"n", 1), KvOp(kind=KvOp.GET, key=b"big")]))
    first = world.kv(read, session, 2)
    assert KvResult.FromString(first.body).ops[1].value == b"v" * 300
    assert world.kv(read, session, 2).code == Code.SESSION_EXPIRED
    assert world.get(b"n").value == b"1"
    assert number(bump(world, session, 1)) == 2  # the sequences beside it are untouched


def test_opening_too_many_evicts_the_one_unused_for_longest() -> None:
    world = ShardWorld(tiny(sessions_max=2))
    first, second = world.open(), world.open()
    world.time_ms += 1
    bump(world, first, 1)
    third = world.open()
    assert bump(world, second, 1).code == Code.SESSION_EXPIRED
    assert number(bump(world, first, 2)) == 2 and number(bump(world, third, 1)) == 3


def test_of_sessions_unused_for_as_long_the_oldest_goes_even_after_a_restart() -> None:
    for restarted in (False, True):
        world = ShardWorld(tiny(sessions_max=3))
        sessions = [world.open() for _ in range(3)]
        for session in reversed(sessions):
            bump(world, session, 1)
        if restarted:
            world.restart()
        world.open()
        assert bump(world, sessions[0], 1).code == Code.SESSION_EXPIRED
        assert bump(world, sessions[1], 1).code == Code.OK


def test_only_an_applied_pulse_ends_a_session() -> None:
    world = ShardWorld(tiny(session_expiry_ms=2000))
    session = world.open()
    world.time_ms += 1500
    first = bump(world, session, 1)
    world.time_ms += 1999
    assert not world.applier.pulse_due(world.time_ms)
    world.time_ms += 1
    assert world.applier.pulse_due(world.time_ms)
    assert same(bump(world, session, 1), first)  # a duplicate, so no use: the session is still due
    world.pulse()
    assert bump(world, session, 1).code == Code.SESSION_EXPIRED
    assert bump(world, session, 2).code == Code.SESSION_EXPIRED
    assert world.get(b"n").value == b"1"
    assert not world.views["session"].pairs and not world.applier.pulse_due(world.time_ms)


def test_a_pulse_ends_a_bounded_number_of_sessions_whole() -> None:
    world = ShardWorld(tiny(pulse_keys_max=2, sessions_max=8, session_window=8, session_bytes_max=4096))
    sessions = [world.open() for _ in range(3)]
    world.time_ms += 1
    for sequence in (1, 2, 3, 4):
        bump(world, sessions[0], sequence)
    world.time_ms += 10_000
    world.pulse()
    left = {key[:8] for key in world.views["session"].pairs}
    assert left == {sessions[0].to_bytes(8, "big")}  # the one last used
    assert world.applier.pulse_due(world.time_ms)
    world.pulse()
    assert not world.views["session"].pairs


def test_an_unknown_session_and_an_unknown_capability_change_nothing() -> None:
    world = ShardWorld(tiny())
    session = world.open()
    before = world.contents()
    assert bump(world, 77, 1).code == Code.SESSION_EXPIRED
    outcome = world.entry(Request(capability="blob", session=session, sequence=1))[0]
    assert outcome.code == Code.UNKNOWN_CAPABILITY
    assert world.contents() == before


def test_a_request_puts_one_pair_into_the_table() -> None:
    world = ShardWorld(tiny(session_bytes_max=4096), checked=False)
    session = world.open()
    view = world.views["session"]
    view.reset()
    for sequence in range(1, 11):
        bump(world, session, sequence, low_water=sequence - 1)
    assert (view.gets, view.scans, view.puts, view.deletes) == (0, 0, 10, 9)


class Kept(NamedTuple):
    size: int
    outcome: Outcome


class Known:
    """A session as the law describes it."""

    def __init__(self, time_ms: int) -> None:
        self.low = 0
        self.time_ms = time_ms
        self.kept: dict[int, Kept] = {}

    def raise_to(self, low: int) -> None:
        self.low = max(self.low, low)
        self.kept = {sequence: kept for sequence, kept in self.kept.items() if sequence > self.low}


class SessionsAgainstModel(RuleBasedStateMachine):
    """Increments under sessions, in any order, with any marks, over restarts: the number counts what was applied."""

    @initialize(limits=drawn_limits())
    def begin(self, limits: Limits) -> None:
        self.world = ShardWorld(limits)
        self.known: dict[int, Known] = {}
        self.ever: list[int] = [99]
        self.applied = 0

    @rule()
    def open(self) -> None:
        session = self.world.open()
        if len(self.known) == self.world.limits.sessions_max:
            del self.known[min(self.known, key=lambda each: (self.known[each].time_ms, each))]
        self.known[session] = Known(self.world.time_ms)
        self.ever.append(session)

    @rule(which=st.integers(0, 10), sequence=st.integers(0, 24), low=st.integers(0, 24))
    def send(self, which: int, sequence: int, low: int) -> None:
        session = self.ever[-1 - which % len(self.ever)]
        outcome = bump(self.world, session, sequence, low)
        known, limits = self.known.get(session), self.world.limits
        if known is None or (sequence <= known.low and sequence not in known.kept):
            assert outcome.code == Code.SESSION_EXPIRED
        elif sequence in known.kept:
            assert same(outcome, known.kept[sequence].outcome)
        elif sequence > max(known.low, min(low, sequence - 1)) + limits.session_window:
            assert outcome.code == Code.OVERLOADED
        else:
            self.applied += 1
            assert number(outcome) == self.applied
            known.time_ms = self.world.time_ms
            known.raise_to(min(low, sequence - 1))
            size = RECORD_BYTES + len(outcome.body)
            while known.kept and sum(kept.size for kept in known.kept.values()) + size > limits.session_bytes_max:
                known.raise_to(min(known.kept))
            known.kept[sequence] = Kept(size, outcome)
        assert int(self.world.get(b"n").value or b"0") == self.applied

    @rule(passed_ms=st.sampled_from([0, 1, 1000, 300_000]))
    def time_passes(self, passed_ms: int) -> None:
        self.world.time_ms += passed_ms

    @rule()
    def expire(self) -> None:
        while self.world.applier.pulse_due(self.world.time_ms):
            self.world.pulse()
        last_ms = self.world.time_ms - self.world.limits.session_expiry_ms
        self.known = {each: known for each, known in self.known.items() if known.time_ms > last_ms}

    @rule()
    def restart(self) -> None:
        self.world.restart()


TestSessionsAgainstModel = SessionsAgainstModel.TestCase
TestSessionsAgainstModel.settings = settings(derandomize=True, deadline=None, max_examples=120, stateful_step_count=40)


def test_late_results_that_find_no_room_are_not_kept_and_end_no_loop() -> None:
    """Sequences 2, 1, 3 with large results: dropping the oldest would lift the mark over the late one, and back."""
    limits = replace(DEFAULT, session_bytes_max=1000)
    sessions, view = Sessions(limits), ShardState(MemoryState(), 1, StateBatch(), 11).view("session")
    sessions.load(view)
    session = sessions.open(1, 0, 0, view).session
    for sequence, index in ((2, 2), (1, 3), (3, 4)):
        assert sessions.admit(session, sequence, 0, index, view) is None
        sessions.keep(session, sequence, 0, 0, Outcome(0, "", b"x" * 600, index), view)
        sessions.check_invariants(view)
    for sequence in (1, 2, 3):
        again = sessions.admit(session, sequence, 0, 9, view)
        assert again is not None, "applied once, never again"
    assert again.body == b"x" * 600
