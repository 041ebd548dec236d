"""The same entries leave the same bytes and the same answers: on a leader and a follower, over restarts and snapshots."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.limits import DEFAULT, Limits
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry
from cluster.types import EntryKind
from node.machines.applier import Outcome
from proto.gen.entry_pb2 import EntryPayload, Fence, Request
from proto.gen.kv_pb2 import KvCommand, KvOp, KvTransaction
from proto.gen.lock_pb2 import LockCommand
from tests.machines.lock_model import LockModel
from tests.machines.shard_world import ShardWorld, drawn_limits, kv_request, parsed
from tests.machines.test_kv_model import BATCHES, BRANCHES, COMPARES, PLAIN
from tests.machines.test_lock_model import NAMES, Drive, lock_request, random_command

COMMANDS = st.one_of(
    st.builds(lambda ops: KvCommand(ops=ops), st.one_of(BATCHES, PLAIN)),
    st.builds(
        lambda compares, then_ops, else_ops: KvCommand(
            transaction=KvTransaction(compares=compares, then_ops=then_ops, else_ops=else_ops)
        ),
        COMPARES,
        BRANCHES,
        BRANCHES,
    ),
)
# A session is named by a guess at the entry that opened it; 0 is none.
SESSIONS = st.sampled_from([0, 4096, 4096, 2 * 4096, 3 * 4096 + 1, 9 * 4096])
SEQUENCED = (SESSIONS, st.integers(1, 12), st.integers(0, 8))
NO_LOCKS = LockModel(DEFAULT)
LOCK_COMMANDS = st.integers(0, 2**32).map(lambda seed: random_command(Random(seed), NO_LOCKS))
FENCES = st.builds(
    lambda name, token, release: Fence(name=name, token=token, holder=name in NAMES, release=release and name in NAMES),
    st.sampled_from([*NAMES, "far", "away"]),
    st.integers(1, 12),
    st.booleans(),
)


def fenced(request: Request, fence: Fence) -> Request:
    request.fences.append(fence)
    return request


REQUESTS = st.one_of(
    st.builds(kv_request, COMMANDS, *SEQUENCED),
    st.builds(lock_request, LOCK_COMMANDS, *SEQUENCED),
    st.builds(lambda command: lock_request(command), LOCK_COMMANDS),
    st.builds(fenced, st.builds(kv_request, COMMANDS, *SEQUENCED), FENCES),
    st.just(Request(open_session=True)),
)


def disjoint(requests: list[Request]) -> list[Request]:
    """Those that a leader would join into one entry: nothing is written by two of them."""
    joined: list[Request] = []
    seen: set[bytes] = set()
    for request in requests:
        keys = writes(request)
        if keys is None:
            return joined or [request]
        if not keys & seen:
            seen |= keys
            joined.append(request)
    return joined


def writes(request: Request) -> set[bytes] | None:
    keys = {b"lock " + fence.name.encode() for fence in request.fences if fence.release}
    if request.capability == "lock":
        command = LockCommand.FromString(request.body)
        which = command.WhichOneof("command")
        if which == "end_lease":
            return None
        return set() if which == "renew" else {b"lock " + getattr(command, str(which)).name.encode()}
    command = KvCommand.FromString(request.body)
    ops = [*command.ops, *command.transaction.then_ops, *command.transaction.else_ops]
    return keys | {op.key for op in ops if op.kind != KvOp.GET}


@st.composite
def log(draw: st.DrawFn) -> list[Entry]:
    entries: list[Entry] = []
    time_ms = 1000
    for index in range(1, draw(st.integers(1, 20)) + 1):
        kind = draw(st.sampled_from([EntryKind.NORMAL] * 5 + [EntryKind.PULSE, EntryKind.EMPTY, EntryKind.CONFIG]))
        if kind is EntryKind.CONFIG:
            entries.append(Entry(index, 1, kind, b"\xff opaque"))
            continue
        time_ms += draw(st.sampled_from([0, 0, 1, 60, 3000, -500]))
        normal = kind is EntryKind.NORMAL
        requests = disjoint(draw(st.lists(REQUESTS, min_size=1, max_size=3))) if normal else []
        if index == 1 and normal:
            requests = [Request(open_session=True), *requests]
        payload = EntryPayload(time_ms=max(0, time_ms), requests=requests)
        entries.append(Entry(index, 1, kind, payload.SerializeToString()))
    return entries


def described(outcomes: list[Outcome] | None) -> list[str]:
    return [repr(outcome) for outcome in outcomes or []]


def installed(source: ShardWorld, limits: Limits) -> ShardWorld:
    """Another replica that gets the source's state as a snapshot, over a state of its own that goes."""
    other = ShardWorld(limits, checked=False)
    other.put(b"junk", b"of an older state")
    other.open()
    source.write()
    other.write()
    asyncio.run(_install(source, other))
    other.load()
    return other


async def _install(source: ShardWorld, other: ShardWorld) -> None:
    snapshot = source.state.snapshot()
    sink = other.state.begin_install()
    while (chunk := await snapshot.read()) is not None:
        await sink.add(chunk)
    sink.commit(snapshot.applied_index, snapshot.applied_term, snapshot.time_ms, Configuration((11,)))
    sink.finish()


@settings(max_examples=100)
@given(limits=drawn_limits(), entries=log(), data=st.data())
def test_replicas_agree_byte_for_byte(limits: Limits, entries: list[Entry], data: st.DataObject) -> None:
    agree(limits, entries, data.draw(st.integers(1, len(entries))))


@pytest.mark.parametrize("seed", range(8))
def test_replicas_agree_on_crowded_locks(seed: int) -> None:
    """The log of a run that meets queues, expiry and tokens that run ahead."""
    drive = Drive(seed, Counter())
    entries: list[Entry] = []
    apply = drive.world.apply

    def recorded(entry: Entry) -> list[Outcome]:
        entries.append(entry)
        return apply(entry)

    drive.world.apply = recorded  # type: ignore[method-assign,assignment]  # it is called with the entry alone
    for _ in range(60):
        drive.step()
    agree(drive.world.limits, entries, len(entries) * (seed + 1) // 9)


def agree(limits: Limits, entries: list[Entry], snapshot_at: int) -> None:
    """A leader, a follower, one restarted after every entry and one that starts from a snapshot end with the same bytes."""
    leader = ShardWorld(limits, checked=False)
    follower = ShardWorld(limits, checked=False)
    restarting = ShardWorld(limits, checked=False)
    late: ShardWorld | None = None
    for entry in entries:
        mine = entry if entry.kind == EntryKind.CONFIG else parsed(entry)
        answers = described(leader.apply(mine))
        follower.apply(entry, want_results=False)
        assert described(restarting.apply(entry)) == answers
        restarting.restart()
        if late is not None:
            assert described(late.apply(entry)) == answers
        if entry.index == snapshot_at:
            late = installed(follower, limits)
    exact = installed(leader, limits)
    for world in (leader, follower, restarting, late):
        assert world is not None
        world.applier.check_invariants()
        assert world.contents() == leader.contents()
        assert world.applier.time_ms == leader.applier.time_ms
        now_ms = leader.applier.time_ms
        for ahead_ms in range(0, 5000, 250):
            due = world.applier.pulse_due(now_ms + ahead_ms)
            assert due >= exact.applier.pulse_due(now_ms + ahead_ms), "no expiry is missed"
