"""What a seed decides before the first event: the size of the cluster, its limits, how hard the load is.

Limits are drawn from their test ranges, since tiny ones find what seeds alone do not; some get a floor below which the
workload itself could not run.
"""

from __future__ import annotations

import random
from dataclasses import fields, replace
from types import MappingProxyType

from chaos.sim.tastes import Ranges
from cluster.limits import DEFAULT, Limits, check

CLIENTS = 8

FLOORS = {
    "key_bytes_max": 64,
    "value_bytes_max": 64,
    "nodes_max": 9,
    "shards_max": 16,
    "principal_bytes_max": 128,
    "sessions_max": 12,
    "client_queue_ops_max": 64,
    "ttl_ms_max": 10_000_000,
    "deadline_ms_max": 600_000,
    "calls_in_flight_max": 24,
    "watches_max": 16,
    "virtual_nodes": 16,
    "tick_ms": 30,
    "heartbeat_ticks": 2,
    "node_heartbeat_ms": 150,
    "lock_name_bytes_max": 64,
    "lock_permits_max": 4,
    "lock_ttl_ms_max": 10_000,
    "lock_wait_ms_max": 10_000,
    "fence_expiry_ms": 7 * 86_400_000,
    "client_backoff_ms_min": 10,
    "client_backoff_ms_max": 200,
}
"""The least value drawn: with less the workload could do nothing, or beats of idle nodes and vain attempts would be most of the work."""

DRAWN_SHARE = 0.6
EAGER = frozenset(
    {
        "segment_bytes",
        "flush_log_bytes",
        "log_entries_kept_max",
        "append_entries_max",
        "entry_requests_max",
        "down_after_ms",
    }
)
"""Drawn almost always: as shipped they are too large to matter in a minute."""
EAGER_SHARE = 0.9
SELDOM = frozenset({"feed_bytes_max", "feed_records_max"})
"""With a short feed a watcher that was cut off is told that history is gone, and owed nothing: in most seeds it shall be owed all."""
SELDOM_SHARE = 0.15


NO_RANGES: Ranges = MappingProxyType({})


def draw_limits(
    chance: random.Random, prefix: str = "", limits: Limits = DEFAULT, ranges: Ranges = NO_RANGES
) -> Limits:
    """A random part of the bounds from their test ranges, the rest as in `limits`; every relation between them holds.
    Only those whose names begin with `prefix`. What has a range in `ranges` is always drawn, and from there."""
    rows = [row for row in fields(Limits) if row.name.startswith(prefix)]
    chance.shuffle(rows)
    rows.sort(key=lambda row: row.name not in ranges)
    for row in rows:
        low, high = ranges.get(row.name, row.metadata["test_range"])
        low = min(high, max(low, FLOORS.get(row.name, low)))
        drawn = round(low * (high / low) ** chance.random())
        share = EAGER_SHARE if row.name in EAGER else SELDOM_SHARE if row.name in SELDOM else DRAWN_SHARE
        if chance.random() < share or row.name in ranges:
            limits = _if_lawful(replace(limits, **{row.name: drawn}), limits)
    return limits


def _if_lawful(wanted: Limits, otherwise: Limits) -> Limits:
    try:
        check(wanted)
    except AssertionError:
        return otherwise
    return wanted
