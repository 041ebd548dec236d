"""Progress on stderr: a bar with the rate on a terminal, a plain line every two seconds otherwise."""

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
