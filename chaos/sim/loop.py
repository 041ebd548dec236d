"""An asyncio loop in virtual time: nothing waits, the clock jumps to the next timer, and a seed decides the order.

Laws: one seed, one order of callbacks. What is ready at one moment runs in an order drawn from the seed, because no loop
promises more than that code should lean on. A callback belongs to the process in whose context it was scheduled: it sees
that process's clock, and is held while that process is paused. Garbage is collected at fixed steps, so that finalisers
run at the same moments in every run.
"""

from __future__ import annotations

import asyncio
import gc
import random
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from chaos.sim.clock import HostClock

T = TypeVar("T")

STEP_S = 1e-6
"""Virtual time of one pass: code that polls without a pause must not stop time."""
TIDY_EVERY = 1000
COLLECT_EVERY = 200_000
"""Callbacks between two collections of garbage."""
CANCELLED_SHARE_MAX = 2

PROCESS: ContextVar[Process | None] = ContextVar("simulated process", default=None)


class Process:
    """One incarnation of a simulated program. `held` are its callbacks while it is paused."""

    __slots__ = ("_prune_at", "clock", "context", "dead", "held", "host", "paused", "tasks")

    def __init__(self, host: str, clock: HostClock) -> None:
        self.host = host
        self.clock = clock
        self.paused = False
        self.dead = False
        self.held: list[Ready] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = Context()
        self.context.run(PROCESS.set, self)
        self._prune_at = 256

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Remembers a task, in the order of their making; those that ended are forgotten from time to time."""
        self.tasks.append(task)
        if len(self.tasks) >= self._prune_at:
            self.tasks = [each for each in self.tasks if not each.done()]
            self._prune_at = 256 + 2 * len(self.tasks)

    def __repr__(self) -> str:
        return self.host


class Stuck(RuntimeError):
    """Nothing will ever happen any more: a future is forgotten."""


class Ready(events.TimerHandle):
    """A callback that is due or will be, with no more than this loop needs of asyncio's handles: they are made by the million.
    A cancelled one has no callback. `booked` is the loop whose timer it is, if it is one; only then `_when` is set."""

    __slots__ = ("booked",)

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context, booked: SimLoop | None
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self.booked = booked

    def cancel(self) -> None:
        if self._callback is not None:
            self._callback = self._args = None  # type: ignore[assignment]
            if self.booked is not None:
                self.booked.timers_cancelled += 1

    def cancelled(self) -> bool:
        return self._callback is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._callback!r}>"


class SimLoop(asyncio.BaseEventLoop):
    """`now` is true time in virtual seconds; `time()` is what the calling process's clock shows."""

    def __init__(self, seed: int, *, permute: bool = True) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.timers_cancelled = 0  # and still booked
        self.problems: list[str] = []
        self._draw = random.Random(f"{seed}/order").random
        self._permute = permute
        self._due: list[Ready] = []
        self._timers: list[tuple[float, int, Ready]] = []
        self._number = 0
        self._paused = 0
        self._tidy_at = TIDY_EVERY
        self._collect_at = COLLECT_EVERY
        self._nobody = Context()
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self.set_exception_handler(self._note_problem)

    # -- time ----------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        process = PROCESS.get()
        return self.now if process is None else process.clock.monotonic()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Ready:
        handle = Ready(callback, args, copy_context() if context is None else context, None)
        self._due.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Ready:
        process = PROCESS.get()
        when = self.now + delay if process is None else process.clock.true_in(delay)
        return self._book(when, callback, args, copy_context() if context is None else context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Ready:
        """`when` is on the clock of the calling process."""
        process = PROCESS.get()
        true = when if process is None else process.clock.true_at(when)
        return self._book(true, callback, args, copy_context() if context is None else context)

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Ready:
        """Calls back at true time `when`, in no process: what kernels, cables and disks do."""
        return self._book(when, callback, args, self._nobody)

    def hand_at(self, when: float, process: Process, callback: Callable[..., object], *args: Any) -> Ready:
        """Runs the callback in a process at true time `when`, or as soon after it as the process runs."""
        return self._book(when, callback, args, process.context)

    def spend(self, seconds: float) -> None:
        """The running callback takes so long."""
        self.now += seconds

    def hand(self, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Runs the callback in a process, as soon as that runs."""
        self.call_soon(callback, *args, context=process.context)

    def start(self, process: Process, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task that belongs to `process`."""
        return self.create_task(work, name=name, context=process.context)

    def _book(self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> Ready:
        handle = Ready(callback, args, context, self)
        handle._when = when  # type: ignore[attr-defined]
        number = self._number = self._number + 1
        heappush(self._timers, (when, number, handle))
        return handle

    # -- processes -----------------------------------------------------------------------------------------------------

    def pause(self, process: Process) -> None:
        if not process.paused:
            process.paused = True
            self._paused += 1

    def resume(self, process: Process) -> None:
        if process.paused:
            process.paused = False
            self._paused -= 1
            held, process.held = process.held, []
            self._due.extend(held)

    def kill(self, process: Process) -> None:
        """Ends every task of the process. Its ports are dead already, so what it does on its way out has no effect."""
        assert not process.dead
        process.dead = True
        self.resume(process)
        for task in list(process.tasks):
            task.cancel()

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.adopt(task)
            if process.dead:
                task.cancel()
        return task

    # -- passes --------------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """Passes until the loop is told to stop. In each, what is due runs in the order of the seed; time jumps to the next timer
        when nothing is."""
        timers, draw = self._timers, self._draw if self._permute else None
        while True:
            batch = self._due
            self._due = []
            while timers and (timers[0][0] <= self.now or not batch):
                when, _, handle = heappop(timers)
                handle.booked = None
                if handle._callback is None:
                    self.timers_cancelled -= 1
                    continue
                if when > self.now:
                    self.now = when
                batch.append(handle)
            if len(batch) > 1:
                if draw is not None:
                    _shuffle(batch, draw)
            elif not batch:
                raise Stuck("nothing is ready and no timer runs")
            for handle in batch:
                callback = handle._callback
                if callback is None or (self._paused and self._held(handle)):
                    continue
                try:
                    handle._context.run(callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"exception in {handle!r}", "exception": error})
            self.now += STEP_S
            self.steps += len(batch)
            if self.steps >= self._tidy_at:
                self._tidy()
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _held(self, handle: Ready) -> bool:
        """Whether the callback has to wait for its process, which is paused."""
        process = handle._context.get(PROCESS)
        if process is None or not process.paused:
            return False
        process.held.append(handle)
        return True

    def _tidy(self) -> None:
        """Once in so many callbacks, so that it is at the same moments in every run."""
        self._tidy_at += TIDY_EVERY
        timers = self._timers
        if self.timers_cancelled * CANCELLED_SHARE_MAX > len(timers):
            timers[:] = [row for row in timers if row[2]._callback is not None]
            heapify(timers)
            self.timers_cancelled = 0
        if self.steps >= self._collect_at:
            self._collect_at += COLLECT_EVERY
            gc.collect()

    def _write_to_self(self) -> None:
        """Only this thread exists."""

    def _note_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.problems.append(f"{context['message']}: {error!r}" if error is not None else context["message"])


def _shuffle(batch: list[Ready], draw: Callable[[], float]) -> None:
    """random.shuffle at a third of its price."""
    for at in range(len(batch) - 1, 0, -1):
        other = int(draw() * (at + 1))
        batch[at], batch[other] = batch[other], batch[at]


def run(loop: SimLoop, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end on `loop`, with the collector under the loop's control, and closes the loop."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()  # what is there already needs no looking at, time and again
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        if collecting:
            gc.freeze()  # the next automatic collection shall not be due at once
            gc.enable()
        gc.unfreeze()
        asyncio.set_event_loop(None)
        loop.close()
