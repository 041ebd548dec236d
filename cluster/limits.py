"""Every bound of the product: unit in the name, relations asserted here, and a small range for tests beside it.

The simulator and the property tests draw from `test_range`, since tiny limits find what seeds alone do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

KIB = 1024
MIB = 1024 * KIB


def bound(default: int, low: int, high: int) -> int:
    """A dataclass field with its default and the range that tests draw from."""
    return field(default=default, metadata={"test_range": (low, high)})


@dataclass(frozen=True, slots=True)
class Limits:
    # key-value
    key_bytes_max: int = bound(4096, 16, 4096)
    value_bytes_max: int = bound(MIB, 64, MIB)
    batch_ops_max: int = bound(4096, 2, 64)
    transaction_ops_max: int = bound(256, 2, 64)
    scan_keys_max: int = bound(1000, 1, 10)  # per page and shard
    scan_bytes_max: int = bound(2 * MIB, 64, 4 * KIB)
    scan_count_keys_max: int = bound(20_000, 1, 10)  # keys counted per page of a count-only scan
    ttl_ms_max: int = bound(10 * 365 * 86_400_000, 1000, 10**12)
    pulse_keys_max: int = bound(1000, 1, 5)
    # requests
    request_bytes_max: int = bound(4 * MIB, 4 * KIB, 4 * MIB)  # one sub-request
    call_bytes_max: int = bound(8 * MIB, 8 * KIB, 8 * MIB)
    call_requests_max: int = bound(1024, 4, 64)
    message_bytes_max: int = bound(16 * MIB, 64 * KIB, 16 * MIB)  # one grpc message
    principal_bytes_max: int = bound(128, 16, 128)
    deadline_ms_default: int = bound(10_000, 1000, 10_000)
    deadline_ms_max: int = bound(600_000, 10_000, 600_000)
    # entries and proposals
    entry_bytes_max: int = bound(5 * MIB, 5 * KIB, 5 * MIB)  # joined requests
    entry_requests_max: int = bound(1024, 1, 8)
    proposal_bytes_pending_max: int = bound(32 * MIB, 16 * KIB, 32 * MIB)  # per shard, proposed but not applied
    proposals_pending_max: int = bound(4096, 4, 64)  # requests per shard
    reads_pending_max: int = bound(16_384, 4, 64)
    # sessions
    session_window: int = bound(1024, 2, 16)  # sequences above the low-water mark
    session_bytes_max: int = bound(MIB, 256, 4 * KIB)  # kept results of one session
    sessions_max: int = bound(10_000, 2, 16)  # per shard
    session_expiry_ms: int = bound(600_000, 2000, 600_000)
    # locks
    lock_name_bytes_max: int = bound(256, 16, 256)
    lock_owner_bytes_max: int = bound(128, 16, 128)
    lock_metadata_bytes_max: int = bound(1024, 8, 1024)
    lock_waiters_max: int = bound(1000, 1, 4)  # of one lock
    lock_permits_max: int = bound(1024, 2, 8)  # of one semaphore
    locks_max: int = bound(100_000, 2, 8)  # records per shard
    lock_leases_max: int = bound(100_000, 2, 8)  # per shard
    lease_attempts_max: int = bound(4096, 1, 6)  # held and waited for, by one lease in one shard
    lock_ttl_ms_min: int = bound(100, 1, 100)
    lock_ttl_ms_max: int = bound(86_400_000, 1000, 86_400_000)
    lock_wait_ms_max: int = bound(86_400_000, 1000, 86_400_000)
    lock_delay_ms_max: int = bound(60_000, 100, 60_000)
    lock_list_max: int = bound(1000, 1, 4)  # locks of a page, owners of a query, holders and waiters told of one lock
    lock_group_max: int = bound(64, 2, 64)  # names acquired together
    fence_names_max: int = bound(100_000, 1, 4)  # per shard
    fences_max: int = bound(64, 1, 64)  # of one request: a group of locks may be shown whole
    fence_expiry_ms: int = bound(7 * 86_400_000, 1000, 7 * 86_400_000)  # a name not shown for so long is forgotten
    deadlock_probe_ms: int = bound(500, 20, 500)
    # feed and watches
    feed_bytes_max: int = bound(8 * MIB, 256, 4 * KIB)  # per shard
    feed_records_max: int = bound(20_000, 4, 32)
    feed_tail_bytes_max: int = bound(256 * KIB, 64, 4 * KIB)  # per shard, the newest records kept in memory
    watch_batch_bytes_max: int = bound(MIB, 256, 4 * KIB)
    watches_max: int = bound(4096, 2, 64)  # per node
    # raft
    tick_ms: int = bound(50, 10, 50)
    node_heartbeat_ms: int = bound(250, 50, 250)
    heartbeat_ticks: int = bound(5, 1, 5)
    election_ticks_min: int = bound(20, 6, 20)  # the timeout is drawn from [min, max)
    election_ticks_max: int = bound(40, 12, 40)
    idle_ticks: int = bound(10, 2, 10)  # a leader with nothing to do falls silent after so many
    lease_drift_percent: int = bound(10, 10, 10)
    append_entries_max: int = bound(512, 1, 16)  # in one append message
    append_bytes_max: int = bound(2 * MIB, 256, 4 * KIB)
    inflight_messages_max: int = bound(64, 1, 4)
    inflight_bytes_max: int = bound(8 * MIB, 512, 8 * KIB)
    log_entries_kept_max: int = bound(10_000, 4, 32)  # applied entries kept in memory for followers that lag
    log_bytes_kept_max: int = bound(4 * MIB, 512, 8 * KIB)
    log_bytes_held_max: int = bound(32 * MIB, 4 * KIB, 64 * KIB)  # instead, while a follower catches up by a snapshot
    inbox_messages_max: int = bound(4096, 16, 128)  # per shard
    # peers
    frame_bytes_max: int = bound(4 * MIB, 4 * KIB, 64 * KIB)
    peer_queue_bytes_max: int = bound(32 * MIB, 16 * KIB, 256 * KIB)
    snapshot_chunk_bytes: int = bound(256 * KIB, 256, 4 * KIB)
    snapshots_sending_max: int = bound(2, 1, 2)  # per node
    snapshot_bytes_per_s: int = bound(32 * MIB, 16 * KIB, 32 * MIB)  # sent by one node, all its snapshots together
    snapshot_idle_ms: int = bound(20_000, 500, 20_000)  # without a chunk or an answer the attempt is given up
    snapshot_resume_ms: int = bound(30_000, 1000, 30_000)  # a broken one may go on where it stood for so long
    peer_hello_ms: int = bound(1000, 100, 1000)  # to connect and be greeted; then the attempt is given up
    keepalive_ms: int = bound(4000, 200, 4000)  # silence before a ping; twice that unanswered: dead
    # storage
    segment_bytes: int = bound(64 * MIB, 2 * KIB, 64 * KIB)
    flush_log_bytes: int = bound(32 * MIB, 1 * KIB, 32 * KIB)  # state is flushed after so many log bytes
    apply_slice_ms: int = bound(2, 1, 2)
    scrub_bytes_per_s: int = bound(4 * MIB, 64 * KIB, 4 * MIB)  # read again to see whether it is still what was written
    scrub_every_ms: int = bound(3_600_000, 2000, 3_600_000)  # between two passes over everything
    # cluster
    nodes_max: int = bound(64, 3, 9)
    shards_max: int = bound(1024, 1, 16)
    virtual_nodes: int = bound(64, 4, 64)  # per node
    calls_in_flight_max: int = bound(4096, 8, 64)  # per node
    # members and moves
    suspect_after_ms: int = bound(2000, 500, 2000)  # a member not heard for so long is suspect
    heard_again_ms: int = bound(1000, 100, 1000)  # and up again when heard for so long without a gap
    down_after_ms: int = bound(60_000, 3000, 60_000)  # not heard for so long, its replicas are rebuilt elsewhere
    driver_ms: int = bound(250, 50, 250)  # between two looks of the placement driver while there is work
    driver_idle_ms: int = bound(5000, 500, 5000)
    moves_max: int = bound(4, 1, 4)  # shards that change their replicas at one time
    moves_per_node_max: int = bound(2, 1, 2)  # learners that catch up on one node
    prefer_after_ms: int = bound(
        5000, 200, 5000
    )  # a leader that is not the preferred one hands over when that one is fit so long
    removed_names_max: int = bound(1024, 8, 1024)
    # client
    client_queue_ops_max: int = bound(100_000, 8, 256)  # waiting or in flight, in one client
    client_queue_bytes_max: int = bound(64 * MIB, 4 * MIB, 8 * MIB)
    client_calls_max: int = bound(4, 1, 4)  # in flight to one node
    client_patience_ms: int = bound(50, 1, 50)  # a further call may go when the last one is out so long
    client_attempt_ms: int = bound(2000, 200, 2000)  # one call is given up after this and sent again
    client_backoff_ms_min: int = bound(10, 1, 10)
    client_backoff_ms_max: int = bound(200, 20, 200)
    client_watch_events_max: int = bound(1024, 1, 16)  # received and not yet taken by the caller


DEFAULT = Limits()


def check(limits: Limits) -> None:
    """The relations the code relies on; AssertionError names the one that is broken."""
    assert limits.key_bytes_max + limits.value_bytes_max < limits.request_bytes_max, "one key and value fit a request"
    assert limits.request_bytes_max < limits.entry_bytes_max, "one request fits an entry"
    assert limits.entry_bytes_max < limits.message_bytes_max, "one entry fits a grpc message"
    assert limits.call_bytes_max < limits.message_bytes_max, "one call fits a grpc message"
    assert limits.frame_bytes_max < limits.message_bytes_max, "a frame fits a grpc message"
    assert limits.election_ticks_min > 2 * limits.heartbeat_ticks, "two heartbeats may be lost without an election"
    assert limits.election_ticks_min + 4 <= limits.election_ticks_max, "a range to draw from, or votes split for ever"
    assert limits.tick_ms * limits.election_ticks_min > 2 * limits.node_heartbeat_ms, "node heartbeats speak for shards"
    assert limits.log_bytes_held_max <= limits.log_bytes_kept_max + limits.proposal_bytes_pending_max, (
        "a deposed leader's log is not taken for that of a follower whose state engine stalls"
    )
    assert 0 < limits.lease_drift_percent < 50, "a lease outlives no election timeout"
    assert limits.snapshot_chunk_bytes < limits.message_bytes_max, "a chunk fits a grpc message"
    assert limits.scan_bytes_max + limits.value_bytes_max + limits.key_bytes_max < limits.message_bytes_max
    assert limits.lock_ttl_ms_min <= limits.lock_ttl_ms_max, "a lease can be asked for"
    assert limits.lock_ttl_ms_max < limits.fence_expiry_ms, "a fence outlives the leases it was shown under"
    for each in fields(limits):
        assert getattr(limits, each.name) > 0, f"{each.name} must be positive"


check(DEFAULT)
