"""Progress of long work: a bar on a terminal, elsewhere a plain line every ten seconds."""

import time
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich import progress as rich_progress
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from densescore.cli.console import err, note, printable, talk

INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""

T = TypeVar("T")
P = TypeVar("P", bound="Progress")


class Progress:
    """Shows on standard error how far the work is; nothing with ``--quiet``.

    Args:
        unit: of the rate.
        shown: False in all but one of several processes.
    """

    def __init__(self, unit: str = "images", shown: bool = True) -> None:
        shown = shown and not talk.quiet
        self._unit = unit
        self._lines = shown and not err.is_terminal
        self._shown_at = time.monotonic()
        self._bar = rich_progress.Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}", markup=False, style="red"),
            console=err,
            get_time=time.monotonic,
            transient=True,
            redirect_stdout=False,  # results may go to a file while the bar is on the terminal
            disable=not shown or self._lines,
        )

    def __enter__(self: P) -> P:
        self._bar.start()
        talk.bar = not self._bar.disable
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        talk.bar = False

    def add(self, description: str, total: int | None = None, unit: str = "") -> TaskID:
        """Begin a piece of work of `total` steps; `unit` of its rate, if it is another one."""
        return self._bar.add_task(printable(description), total=total, unit=unit or self._unit, failed="", rate=None)

    def update(
        self,
        task: TaskID,
        completed: int,
        *,
        total: int | None = None,
        description: str = "",
        failed: int = 0,
        rate: float | None = None,
    ) -> None:
        """Show that `completed` steps are done, `failed` of them without success; a `rate` that is known is shown."""
        new: dict[str, Any] = {"completed": completed, "failed": f"{failed:,} failed" if failed else "", "rate": rate}
        if total is not None:
            new["total"] = total
        if description:
            new["description"] = printable(description)
        self._bar.update(task, **new)
        now = time.monotonic()
        if self._lines and now - self._shown_at >= INTERVAL:
            self._shown_at = now
            note(_line(next(found for found in self._bar.tasks if found.id == task)))

    def track(self, items: Iterable[T], description: str, unit: str = "") -> Iterator[T]:
        """The items, counted as they are taken; see `add`. Their bar goes in the end."""
        task = self.add(description, len(items) if isinstance(items, Collection) else None, unit)
        try:
            for done, item in enumerate(items, 1):
                yield item
                self.update(task, done)
        finally:  # also where the last items are not asked for
            self._bar.remove_task(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task))


def _rate(task: Task) -> str:
    speed = task.fields["rate"] or task.finished_speed or task.speed
    return "" if speed is None else f"{speed:.3g} {task.fields['unit']}/s"


def _line(task: Task) -> str:
    """``features: 320 of 1,000, 12.4 images/s, 0:00:55 left, 2 failed``."""
    total = "" if task.total is None else f" of {task.total:,.0f}"
    left = "" if task.time_remaining is None else f"{timedelta(seconds=round(task.time_remaining))} left"
    parts = (f"{task.description}: {task.completed:,.0f}{total}", _rate(task), left, task.fields["failed"])
    return ", ".join(part for part in parts if part)
