"""Ports for nodes on this host.

They are taken below the kernel's range of ephemeral ports. Inside it the port of a node that is down may become the
source port of anyone's outgoing connection, even of a peer that dials this very port: TCP then connects to itself, and the node
cannot come back.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path

from cluster.errors import Code, TenfoldError
from cluster.local.cluster_file import HOST

LOWEST = 10_000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral_low() -> int:
    """The lowest port that the kernel gives to outgoing connections; Linux's default if it does not tell."""
    try:
        return int(EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def is_free(port: int) -> bool:
    """Whether one could listen on `port` now. Connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int, avoid: Collection[int] = ()) -> list[int]:
    """`count` distinct ports that are free now and not in `avoid`. Another process may still come first: who starts a
    node on one must be ready to take another. TenfoldError Unavailable if there are not so many."""
    if count == 0:
        return []
    top = ephemeral_low()
    candidates = range(LOWEST, top) if top - LOWEST > 1000 else range(1024, 65_536)
    found: list[int] = []
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        if port not in avoid and is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise TenfoldError(Code.UNAVAILABLE, f"only {len(found)} of {count} ports are free on {HOST}")
