"""All bugs, by name."""

from __future__ import annotations

from types import MappingProxyType

from chaos.bugs.lock import LOCK_BUGS
from chaos.bugs.log import LOG_BUGS
from chaos.bugs.patch import Bug
from chaos.bugs.reads import READ_BUGS
from chaos.bugs.sessions import SESSION_BUGS
from chaos.bugs.storage import STORAGE_BUGS
from chaos.bugs.time import TIME_BUGS
from chaos.bugs.votes import VOTE_BUGS

CATALOGUE: MappingProxyType[str, Bug] = MappingProxyType(
    {bug.name: bug for bug in (*LOG_BUGS, *VOTE_BUGS, *READ_BUGS, *SESSION_BUGS, *STORAGE_BUGS, *TIME_BUGS, *LOCK_BUGS)}
)
