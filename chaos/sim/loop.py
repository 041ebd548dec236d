"""An asyncio loop in virtual time: nothing waits, the clock jumps to the next timer, and a seed decides the order.

Laws: one seed, one order of callbacks. What is ready at one moment runs in an order drawn from the seed, because no loop
promises more than that code should lean on. A callback belongs to the process in whose context it was scheduled: it sees
that process's clock, and is held while that process is paused. Garbage is collected at fixed steps, so that finalisers
run at the same moments in every run.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeVar

from chaos.sim.clock import HostClock

T = TypeVar("T")

STEP_S = 1e-6
"""Virtual time of one pass: code that polls without a pause must not stop time."""
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
        self.held: list[events.Handle] = []
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


class SimLoop(asyncio.BaseEventLoop):
    """`now` is true time in virtual seconds; `time()` is what the calling process's clock shows."""

    def __init__(self, seed: int, *, permute: bool = True) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.problems: list[str] = []
        self._order = random.Random(f"{seed}/order")
        self._permute = permute
        self._timer_cancelled_count = 0
        self._collect_at = COLLECT_EVERY
        self._nobody = Context()
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._note_problem)

    # -- time ----------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        process = PROCESS.get()
        return self.now if process is None else process.clock.monotonic()

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """`when` is on the clock of the calling process."""
        process = PROCESS.get()
        return self._at(when if process is None else process.clock.true_at(when), callback, args, context)

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Calls back at true time `when`, in no process: what kernels, cables and disks do."""
        return self._at(when, callback, args, self._nobody)

    def spend(self, seconds: float) -> None:
        """The running callback takes so long."""
        self.now += seconds

    def hand(self, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Runs the callback in a process, as soon as that runs."""
        self.call_soon(callback, *args, context=process.context)

    def start(self, process: Process, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task that belongs to `process`."""
        return self.create_task(work, name=name, context=process.context)

    def _at(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    # -- processes -----------------------------------------------------------------------------------------------------

    def pause(self, process: Process) -> None:
        process.paused = True

    def resume(self, process: Process) -> None:
        process.paused = False
        held, process.held = process.held, []
        self._ready.extend(held)  # type: ignore[attr-defined]

    def kill(self, process: Process) -> None:
        """Ends every task of the process. Its ports are dead already, so what it does on its way out has no effect."""
        assert not process.dead
        process.dead = True
        self.resume(process)
        for task in list(process.tasks):
            task.cancel()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.adopt(task)
            if process.dead:
                task.cancel()
        return task

    # -- one pass ------------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        self._drop_cancelled()
        if not ready:
            if not timers:
                raise Stuck("nothing is ready and no timer runs")
            self.now = max(self.now, timers[0]._when)
        while timers and timers[0]._when <= self.now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        batch = list(ready)
        ready.clear()
        if self._permute and len(batch) > 1:
            self._order.shuffle(batch)
        for handle in batch:
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and process.paused:
                process.held.append(handle)
            else:
                handle._run()
        self.steps += len(batch)
        self.now += STEP_S
        if self.steps >= self._collect_at:
            self._collect_at += COLLECT_EVERY
            gc.collect()

    def _drop_cancelled(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1
        if self._timer_cancelled_count * CANCELLED_SHARE_MAX > len(timers) > 100:
            for timer in timers:
                timer._scheduled = not timer._cancelled
            timers[:] = [timer for timer in timers if not timer._cancelled]
            heapq.heapify(timers)
            self._timer_cancelled_count = 0

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle._scheduled:  # type: ignore[attr-defined]
            self._timer_cancelled_count += 1

    def _write_to_self(self) -> None:
        """Only this thread exists."""

    def _note_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.problems.append(f"{context['message']}: {error!r}" if error is not None else context["message"])


def run(loop: SimLoop, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end on `loop`, with the collector under the loop's control, and closes the loop."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        if collecting:
            gc.enable()
        asyncio.set_event_loop(None)
        loop.close()
