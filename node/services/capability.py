"""What a capability's service is: everything that is checked about a request before it is proposed or asked.

Law: what passes here can be applied. Whatever makes no sense is refused with a code, the field and its bound, and never reaches
a log. A module of this folder that defines `Service`, made with the limits, is a capability.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Protocol

from node.machines.machine import Machine


class CapabilityService(Protocol):
    name: str
    client_commands: bool
    """Whether clients may propose; queries are for all."""

    def machine(self) -> Machine:
        """A new machine for one shard."""

    def command(self, body: bytes, shard: int, shards: int) -> tuple[Any, Set[bytes] | None]:
        """The parsed command and the keys it may write; two requests that write one key do not share a log entry. None: that
        cannot be said, and it is alone in its entry.
        TenfoldError: INVALID_ARGUMENT names the field and its bound, WRONG_SHARD and CROSS_SHARD the shards. `shards`
        counts the data shards."""

    def query(self, body: bytes, shard: int, shards: int) -> Any:
        """The parsed query. Errors as for a command."""

    def event(self, index: int, key: bytes, event: bytes) -> Any:
        """One change of the feed as a watch tells it; only where the machine appends changes."""
