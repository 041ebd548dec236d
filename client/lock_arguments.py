"""What callers of locks pass, checked before anything is sent. The texts are the server's, which checks the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from client.arguments import each_of, octets, text, whole
from client.fencing import lock_name, visible
from client.lock_attempts import Wanted
from client.lock_view import MODES
from cluster.errors import invalid
from cluster.limits import Limits
from proto.gen.lock_pb2 import LockMode

Mode = Literal["exclusive", "shared", "semaphore"]
"""exclusive: one owner. shared: any number, and nobody exclusively. semaphore: `permits` of a `capacity` all must agree on."""


class How(NamedTuple):
    """How names are to be held. `owner` is who acts: by default the task that asks, which is right while a task gives up itself
    what it took; a name of your own stays the same owner in every process that gives it. Deadlocks are found among owners, and with `reentrant` the owner that holds a lock gets it again, under the same
    token. `delay_ms`: should the lease be lost, nobody gets the lock for so long. `metadata` is shown to whoever asks."""

    mode: Mode = "exclusive"
    capacity: int = 0
    permits: int = 0
    owner: str | None = None
    metadata: str | bytes = b""
    reentrant: bool = False
    delay_ms: int = 0


PLAIN = How()
"""Exclusive, by the task that asks."""


def names_of(names: str | Iterable[str], limits: Limits) -> Sequence[str]:
    if isinstance(names, str):
        return [lock_name(names, limits)]
    found = [lock_name(name, limits, f"names[{position}]") for position, name in enumerate(each_of(names, "names"))]
    if not 1 <= len(found) <= limits.lock_group_max:
        raise invalid("names", f"{len(found)}, must be 1 to {limits.lock_group_max}")
    if len(set(found)) < len(found):
        raise invalid("names", "a name is given twice")
    return found


def ttl_of(ttl_ms: int, limits: Limits) -> int:
    low, high = limits.lock_ttl_ms_min, limits.lock_ttl_ms_max
    if not low <= whole(ttl_ms, "ttl_ms") <= high:
        raise invalid("ttl_ms", f"{ttl_ms}, must be {low} to {high}")
    return ttl_ms


def wait_of(wait_ms: int | None, limits: Limits) -> int | None:
    if wait_ms is not None and not 0 <= whole(wait_ms, "wait_ms") <= limits.lock_wait_ms_max:
        raise invalid("wait_ms", f"{wait_ms}, must be 0 to {limits.lock_wait_ms_max}")
    return wait_ms


def wanted_of(how: How, owner: str, limits: Limits) -> Wanted:
    """`owner` where `how` names none."""
    if how.mode not in MODES:
        raise invalid("mode", f"{how.mode!r}, must be one of {', '.join(MODES)}")
    mode = MODES[how.mode]
    owner = visible(text(how.owner, "owner"), "owner") if how.owner is not None else owner
    if not 1 <= len(octets(owner, "owner")) <= limits.lock_owner_bytes_max:
        raise invalid("owner", f"{len(owner.encode())} bytes, must be 1 to {limits.lock_owner_bytes_max}")
    metadata = octets(how.metadata, "metadata")
    if len(metadata) > limits.lock_metadata_bytes_max:
        raise invalid("metadata", f"{len(metadata)} bytes, must be 0 to {limits.lock_metadata_bytes_max}")
    capacity, permits = whole(how.capacity, "capacity"), whole(how.permits, "permits")
    counted = mode == LockMode.SEMAPHORE
    if counted != (1 <= capacity <= limits.lock_permits_max) or (capacity and not counted):
        bound = limits.lock_permits_max
        raise invalid("capacity", f"{capacity}, must be 1 to {bound} for a semaphore, and is for it alone")
    if not 0 <= permits <= (capacity if counted else 1):
        raise invalid("permits", f"{permits}, must be 0 to {capacity if counted else 1}")
    if not 0 <= whole(how.delay_ms, "delay_ms") <= limits.lock_delay_ms_max:
        raise invalid("delay_ms", f"{how.delay_ms}, must be 0 to {limits.lock_delay_ms_max}")
    return Wanted(mode, capacity, permits, owner, metadata, how.reentrant, how.delay_ms)


def milliseconds(given: float, field: str) -> int:
    """From seconds; what is not 0 is at least one."""
    if not isinstance(given, int | float) or isinstance(given, bool) or not given >= 0:
        raise invalid(field, f"{str(given)[:20]}, must be a number of seconds, 0 or more")
    if given > 10**9:
        raise invalid(field, f"{str(given)[:20]}, must be at most {10**9}")
    return max(1, round(given * 1000)) if given else 0
