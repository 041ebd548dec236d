"""Progress on stderr: a bar on a terminal, a plain line every two seconds otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from client.cli.output import note

PLAIN_EVERY_S = 2.0


class Progress:
    """`total` bytes are to be read; `tell` says how far it is."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._started = self._told = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, records=0, rate=0.0)
        return self

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        return Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[records]:,} records  {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def tell(self, done: int, records: int) -> None:
        now = time.monotonic()
        rate = records / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, records=records, rate=rate)
        elif now - self._told >= PLAIN_EVERY_S:
            self._told = now
            percent = 100 * done // self._total if self._total else 100
            note(f"{self._what}: {percent}%, {records} records, {rate:.0f}/s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


class Steps:
    """Of what is done step by step: `tell` says how many of how many, and what is under way. Without a terminal a line when that has
    changed, at most every two seconds, and one at the end."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._told_at = float("-inf")
        self._line = ""
        self._last = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None, now="")
        return self

    def tell(self, done: int, total: int, now: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, now=now)
        self._last = f"{self._what}: {done} of {total} {self._unit}"
        self._write(f"{self._last}{f'; now {now}' if now else ''}", time.monotonic() - self._told_at >= PLAIN_EVERY_S)

    def _write(self, line: str, due: bool) -> None:
        if self._bar is None and due and line != self._line:
            self._line, self._told_at = line, time.monotonic()
            note(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._last:
            self._write(self._last, True)
