"""The change feed: no gap, nothing twice, the oldest gone first and said so, the same after a restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from node.machines.feed import Event, Feed
from node.storage.view import CapabilityView
from proto.gen.kv_pb2 import KvCommand
from tests.machines.shard_world import ShardWorld, drawn_limits, kv_request, put, tiny


def feed_of(limits: Limits, view: CapabilityView) -> Feed:
    feed = Feed(limits)
    feed.load(view)
    return feed


def read_all(
    feed: Feed, after: int, start: bytes = b"", end: bytes = b"", bytes_max: int = 1, capability: str = "kv"
) -> list[Event]:
    """As a watcher reads: from token to token."""
    events: list[Event] = []
    while after < feed.last_index:
        page, told = feed.read(after, start, end, bytes_max, capability)
        assert told > after, "a read goes on"
        assert all(after < event[0] <= told for event in page)
        events += page
        after = told
    return events


Groups = list[tuple[str, list[tuple[bytes, bytes]]]]


def changed_once(groups: Groups) -> Groups:
    """An entry changes a key of a capability once."""
    seen: set[tuple[str, bytes]] = set()
    kept: Groups = []
    for name, changes in groups:
        fresh = {key: event for key, event in changes if (name, key) not in seen}
        seen.update((name, key) for key in fresh)
        if fresh:
            kept.append((name, list(fresh.items())))
    return kept


KEY = st.sampled_from([b"", b"a", b"ab", b"b", b"\xff"])
GROUP = st.tuples(
    st.sampled_from(["kv", "meta", "lock"]), st.lists(st.tuples(KEY, st.binary(max_size=60)), min_size=1, max_size=4)
)


@given(
    limits=drawn_limits(),
    entries=st.lists(st.tuples(st.integers(1, 3), st.lists(GROUP, min_size=1, max_size=3), st.booleans()), max_size=60),
    start=KEY,
    end=KEY,
    bytes_max=st.sampled_from([1, 30, 300, 10**6]),
    capability=st.sampled_from(["kv", "lock", "none"]),
)
def test_every_token_above_the_floor_gets_the_rest_without_gap_or_duplicate(
    limits: Limits,
    entries: list[tuple[int, Groups, bool]],
    start: bytes,
    end: bytes,
    bytes_max: int,
    capability: str,
) -> None:
    view = ShardWorld(limits).state.view("feed")
    feed = feed_of(limits, view)
    history: list[Event] = []
    index = 0
    for gap, groups, restarted in entries:
        index += gap
        groups = changed_once(groups)
        feed.append(index, groups)
        history += [(index, name, key, event) for name, changes in groups for key, event in changes]
        if restarted:
            feed = feed_of(limits, view)
        feed.check_invariants(view)
    for after in range(index + 2):
        if after < feed.floor:
            with pytest.raises(TenfoldError) as raised:
                feed.read(after, start, end, bytes_max, capability)
            assert raised.value.code is Code.COMPACTED and raised.value.details == {"floor": feed.floor}
        else:
            wanted = [
                e for e in history if e[0] > after and e[1] == capability and start <= e[2] and (not end or e[2] < end)
            ]
            assert read_all(feed, after, start, end, bytes_max, capability) == wanted
    kept = len({event[0] for event in history if event[0] > feed.floor})
    assert kept <= limits.feed_records_max
    assert feed.last_index == index


def test_a_watcher_that_keeps_up_is_never_compacted() -> None:
    world = ShardWorld(tiny(feed_bytes_max=256, feed_records_max=4))
    after = 0
    for number in range(50):
        world.put(b"k%d" % number, b"v" * (1000 if number % 7 == 0 else 10))
        events, after = world.applier.feed.read(after, b"", b"", 1)
        assert [(index, key) for index, _, key, _ in events] == [(world.index, b"k%d" % number)]
    assert world.applier.feed.floor > 40


def test_a_watcher_near_the_end_does_not_scan_the_view() -> None:
    world = ShardWorld(tiny(feed_records_max=32, feed_bytes_max=4096, feed_tail_bytes_max=256), checked=False)
    for number in range(20):
        world.put(b"k%d" % number)
    view = world.views["feed"]
    view.reset()
    assert len(read_all(world.applier.feed, world.index - 2)) == 2
    assert read_all(world.applier.feed, world.index) == []
    assert (view.scans, view.gets) == (0, 0)
    assert len(read_all(world.applier.feed, 0, bytes_max=10**6)) == 20
    assert view.scans == 1


def test_an_entry_leaves_one_record_and_one_that_changes_nothing_none() -> None:
    world = ShardWorld(tiny(feed_records_max=32, feed_bytes_max=4096), checked=False)
    session = world.open()
    view = world.views["feed"]
    world.entry(kv_request(KvCommand(ops=[put(b"a")]), session, 1), kv_request(KvCommand(ops=[put(b"b"), put(b"c")])))
    assert view.puts == len(view.pairs) == 1
    world.entry(kv_request(KvCommand(ops=[put(b"a")]), session, 1))  # a duplicate
    world.pulse()
    assert view.puts == 1
    assert [key for _, _, key, _ in read_all(world.applier.feed, 0)] == [b"a", b"b", b"c"]


def test_the_law_that_an_entry_changes_a_key_once_is_checked() -> None:
    limits = tiny()
    view = ShardWorld(limits).state.view("feed")
    feed = feed_of(limits, view)
    feed.append(1, [("kv", [(b"k", b"1"), (b"k", b"2")])])
    with pytest.raises(AssertionError, match="changes a key twice"):
        feed.check_invariants(view)
