"""Who acts in a client: a task, or a thread of a program without asyncio.

Law: an owner is followed by a new one, as soon as nothing is held under it, when something of it may live on in a shard that nobody
relies on: a release in doubt, an acquire given up, a lost lease, a lock left to run out. Whoever asks for that lock again would else
be found to wait for itself.
"""

from __future__ import annotations

import asyncio
import weakref
from itertools import count

from cluster.ports import Random


class Owner:
    """`held` counts what it relies on; `left`: something may be left of it that it does not know of."""

    __slots__ = ("held", "left", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = 0
        self.left = False

    @property
    def over(self) -> bool:
        return self.left and not self.held


class Owners:
    """`identity` draws what no two clients may have in common."""

    def __init__(self, identity: Random) -> None:
        self._identity = identity
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[object], Owner] = weakref.WeakKeyDictionary()
        self._threads: dict[int, Owner] = {}
        self._client = ""
        self._numbers = count(1)

    def new(self) -> Owner:
        """Its name begins with what is drawn for the client."""
        if not self._client:
            self._client = f"{self._identity.randrange(0, 2**48):012x}"
        return Owner(f"{self._client}.{next(self._numbers)}")

    def of_task(self) -> Owner:
        """A task acts step by step, so it is one owner, whatever leases it uses."""
        task = asyncio.current_task()
        assert task is not None, "who awaits is a task"
        owner = self._tasks.get(task)
        if owner is None or owner.over:
            owner = self._tasks[task] = self.new()
        return owner

    def of_thread(self, thread: int) -> Owner:
        owner = self._threads.get(thread)
        if owner is None or owner.over:
            owner = self._threads[thread] = self.new()
        return owner
