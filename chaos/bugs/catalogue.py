"""All bugs, by name."""

from __future__ import annotations

from types import MappingProxyType

from chaos.bugs.node import NODE_BUGS
from chaos.bugs.patch import Bug
from chaos.bugs.raft import RAFT_BUGS

CATALOGUE: MappingProxyType[str, Bug] = MappingProxyType({bug.name: bug for bug in (*RAFT_BUGS, *NODE_BUGS)})
