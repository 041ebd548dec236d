"""What the lock machine tells in the feed, what it answers, what it costs and where it is full."""

from __future__ import annotations

from cluster.errors import Code
from cluster.limits import DEFAULT
from node.machines.lock_rows import attempt_key
from proto.gen.entry_pb2 import Request
from proto.gen.lock_pb2 import (
    EXCLUSIVE,
    LockAnswer,
    LockCheck,
    LockCommand,
    LockList,
    LockQuery,
    LockRelease,
    LockRenew,
    LockResult,
)
from tests.machines.shard_world import CountedView, ShardWorld, tiny
from tests.machines.test_lock import CHANGED, acquire, asked, owners, release, world


def test_an_entry_tells_the_state_it_leaves_under_the_keys_that_are_watched() -> None:
    shard = world()
    acquire(shard, 1, metadata=b"m")
    acquire(shard, 2)
    release(shard, 1)
    events, _ = shard.applier.feed.read(shard.index - 1, b"", b"", 10**6, "lock")
    assert [key for _, _, key, _ in events] == [attempt_key(2, 1), b"na"]
    assert attempt_key(2, 1) == b"a" + (2).to_bytes(8, "big") + (1).to_bytes(8, "big")
    public = shard.told()[-1]
    assert (public.kind, public.holder.owner, public.token, public.index) == (CHANGED, "w2", 3, 3)
    release(shard, 2)
    assert not shard.told()[-1].HasField("holder"), "it is free"


def test_requests_of_other_names_share_an_entry() -> None:
    shard = world()
    acquire(shard, 1)
    acquire(shard, 2)
    commands = (
        LockCommand(release=LockRelease(name="a", lease=1, attempt=1)),
        LockCommand(acquire=asked(1, "b", attempt=2)),
        LockCommand(renew=LockRenew(lease=1, ttl_ms=2000)),
        LockCommand(acquire=asked(2, "c", attempt=2)),
    )
    requests = [Request(capability="lock", body=command.SerializeToString()) for command in commands]
    assert [outcome.code for outcome in shard.entry(*requests)] == [Code.OK] * 4
    assert [owners(shard, name)[0] for name in "abc"] == [["w2"], ["w1"], ["w2"]]


def test_check_says_how_an_attempt_stands() -> None:
    shard = world()
    acquire(shard, 1)
    acquire(shard, 2)
    acquire(shard, 3)

    def stands(lease: int) -> LockResult:
        asked_for = LockQuery(check=LockCheck(name="a", lease=lease, attempt=1))
        found: LockAnswer = shard.applier.query("lock", asked_for)
        return found.attempt

    assert stands(1) == LockResult(granted=True, token=1)
    assert stands(3) == LockResult(waiting=True, waiters=1)
    gone = stands(4)
    assert not gone.granted and not gone.waiting and (gone.holder.owner, gone.waiters) == ("w1", 2)


def test_lists_are_bounded_in_locks_and_bytes() -> None:
    shard = world(tiny(lock_list_max=2, locks_max=8, lock_leases_max=8, lease_attempts_max=6, scan_bytes_max=4096))
    for number in range(5):
        acquire(shard, 1, f"p{number}", attempt=number)
    acquire(shard, 2, "q")
    page = shard.applier.query("lock", LockQuery(list=LockList(prefix="p")))
    assert ([lock.name for lock in page.locks], page.more, page.next) == (["p0", "p1"], True, "p2")
    page = shard.applier.query("lock", LockQuery(list=LockList(prefix="p", start="p4")))
    assert ([lock.name for lock in page.locks], page.more) == (["p4"], False)
    small = world(tiny(lock_list_max=4, locks_max=8, scan_bytes_max=64))
    acquire(small, 1)
    acquire(small, 2, "b")
    assert small.applier.query("lock", LockQuery(list=LockList())).next == "b"


def test_what_is_full_says_so_and_changes_nothing() -> None:
    shard = world(tiny(locks_max=2, lock_leases_max=3, lease_attempts_max=2, lock_waiters_max=1))
    acquire(shard, 1)
    acquire(shard, 2)
    before = shard.views["lock"].pairs
    assert shard.lock(acquire=asked(3)).code == Code.TOO_MANY_WAITERS
    assert shard.views["lock"].pairs == before
    acquire(shard, 1, "b", attempt=2)
    assert "lease 1" in shard.lock(acquire=asked(1, "b", attempt=3)).message
    assert "2 locks" in shard.lock(acquire=asked(2, "c", attempt=2)).message
    acquire(shard, 3, "b")
    release(shard, 2)
    assert "3 leases" in shard.lock(acquire=asked(4)).message


def test_an_uncontended_hold_costs_few_writes_and_no_read() -> None:
    shard = ShardWorld(DEFAULT, checked=False)
    acquire(shard, 9, "other")
    view: CountedView = shard.views["lock"]
    view.reset()
    acquire(shard, 1, mode=EXCLUSIVE)
    assert (view.puts, view.deletes, view.gets, view.scans) == (2, 0, 0, 0)
    view.reset()
    release(shard, 1, end_lease=True)
    assert (view.puts, view.deletes, view.gets, view.scans) == (0, 2, 0, 0)
