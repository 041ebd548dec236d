"""Names and small values that every room shares."""

from __future__ import annotations

import re
from enum import IntEnum, StrEnum

META_SHARD = 0
"""The meta shard; data shards are 1..count."""

NODE_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""A node's name; checked before it becomes part of a path."""


class EntryKind(IntEnum):
    """What an entry of a shard's log is. PREPARE and DECIDE are reserved for cross-shard transactions."""

    NORMAL = 0
    CONFIG = 1
    PULSE = 2
    SESSION = 3
    EMPTY = 4  # the entry a new leader appends to commit its term (Raft thesis, section 6.4)
    PREPARE = 5
    DECIDE = 6


class Role(StrEnum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


def node_name(text: str) -> str:
    """`text` if it is a legal node name; ValueError otherwise."""
    if not NODE_PATTERN.fullmatch(text):
        raise ValueError(f"node: {text!r} must match {NODE_PATTERN.pattern}")
    return text
