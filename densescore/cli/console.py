"""Output of the commands: results on standard output; notices, errors and progress on standard error.

Text is printed literally, never as markup. Characters that a terminal would execute or cannot show are escaped.
"""

import sys
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich import progress as rich_progress
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from densescore.io.names import as_text, is_unicode, to_json

if TYPE_CHECKING:
    from densescore.transfer.train_head import Round

out = Console(markup=False, highlight=False, emoji=False)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)

_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators
_DIRECTIONS = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


@dataclass
class Verbosity:
    """``--quiet``, ``--verbose``, and whether a progress bar is on the screen."""

    quiet: bool = False
    verbose: bool = False
    bar: bool = False


verbosity = Verbosity()


def printable(value: object) -> str:
    r"""Text with control characters, direction marks and bytes that are not UTF-8 escaped.

    Example:
        >>> print(printable("red: \x1b[31m, a line:\n, a byte: \udcff"))
        red: \x1b[31m, a line:\n, a byte: \xff
    """
    return "".join(_escape(character) for character in str(value))


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that Python could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in _ESCAPED or character in _DIRECTIONS:
        return character.encode("unicode_escape").decode()
    return character


def _results() -> Console:
    """Console for results. While a bar is on the terminal, it is the bar's, which keeps lines and bar apart."""
    return err if verbosity.bar and out.is_terminal else out


def info(text: str) -> None:
    """Print a line of the result."""
    _results().print(printable(text), soft_wrap=True)


def print_json(record: Any) -> None:
    """Print a result as one line of JSON; names that are not Unicode as `as_text` writes them."""
    _results().print(to_json(_unicode(record)), soft_wrap=True)
    sys.stdout.flush()


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return value if is_unicode(value) else as_text(value)
    if isinstance(value, dict):
        return {_unicode(key): _unicode(item) for key, item in value.items()}
    return [_unicode(item) for item in value] if isinstance(value, list | tuple) else value


def notice(text: str) -> None:
    """Print a line on standard error, except with ``--quiet``."""
    if not verbosity.quiet:
        err.print(printable(text), soft_wrap=True)


def detail(text: str) -> None:
    """Print a line on standard error with ``--verbose``."""
    if verbosity.verbose:
        err.print(printable(text), soft_wrap=True)


def error(problem: object) -> None:
    """Print an error in one line."""
    err.print(Text.assemble(("error:", "bold red"), " ", printable(problem)), soft_wrap=True)


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    last: Sequence[object] = (),
    numeric: bool = True,
) -> None:
    """Print a table, `last` below a line; with `numeric`, all columns but the first are right-aligned."""
    console, title = _results(), printable(title)
    body = [tuple(map(printable, row)) for row in rows]
    end = tuple(map(printable, last))
    columns = list(zip(map(printable, headings), *body, *([end] if end else []), strict=True))
    table = Table()
    room, words = console.width - 1, [_longest_word(column) for column in columns]
    if sum(words) + 3 * len(columns) > room:  # without borders
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    room -= len(columns) * (1 if table.box is None else 3)
    for index, width in enumerate(_column_widths(columns, words, room)):
        justify: Literal["left", "right"] = "right" if numeric and index else "left"
        table.add_column(columns[index][0], justify=justify, overflow="fold", width=width)
    for row in body:
        table.add_row(*row)
    if end:
        table.add_section()
        table.add_row(*end)
    if title:  # a table's own title is as narrow as the table, which cuts a path in two
        console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)


def _longest_word(cells: Sequence[str]) -> int:
    return max(cell_len(word) for cell in cells for word in (cell.split() or [""]))


def _column_widths(columns: Sequence[Sequence[str]], words: Sequence[int], total: int) -> list[int]:
    """Widths of `total` characters at most; none breaks a word, except where all `words` together are longer."""
    widths = [max(map(cell_len, column)) for column in columns]
    for least in (words, [1] * len(words)):
        while sum(widths) > total:
            spare = [width - floor for width, floor in zip(widths, least, strict=True)]
            if max(spare) <= 0:
                break
            widths[spare.index(max(spare))] -= 1
    return widths


def fraction(value: float | None) -> str:
    """Table cell for a value in [0, 1]; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def describe_map(entry: Mapping[str, Any]) -> str:
    """Class of a manifest's entry, and its probability or without calibration its confidence."""
    probability = entry.get("probability")
    number = f"confidence {entry['confidence']:.2g}" if probability is None else f"{100 * probability:.0f} %"
    return f"{entry['label']}: {number}"


INTERVAL = 10.0
"""Seconds between lines of progress without a terminal."""

T = TypeVar("T")
P = TypeVar("P", bound="Progress")


class Progress:
    """Progress on standard error, in `unit` per second; hidden with ``--quiet``, and unless `shown`."""

    def __init__(self, unit: str = "images", shown: bool = True) -> None:
        shown = shown and not verbosity.quiet
        self._unit = unit
        self._lines = shown and not err.is_terminal
        self._printed_at = time.monotonic()
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
        verbosity.bar = not self._bar.disable
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        verbosity.bar = False

    def add(self, description: str, total: int | None = None, unit: str = "") -> TaskID:
        """Begin a task of `total` steps."""
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
        """Set the completed steps, `failed` among them; `rate` replaces the measured one."""
        changes: dict[str, Any] = {"completed": completed, "failed": f"{failed:,} failed" if failed else ""}
        changes |= {"rate": rate, "total": total, "description": printable(description) or None}
        self._bar.update(task, **changes)  # None leaves total and description as they are
        now = time.monotonic()
        if self._lines and now - self._printed_at >= INTERVAL:
            self._printed_at = now
            notice(_line(next(item for item in self._bar.tasks if item.id == task)))

    def track(self, items: Iterable[T], description: str, unit: str = "") -> Iterator[T]:
        """Yield the items, counting them in a task that is removed at the end."""
        task = self.add(description, len(items) if isinstance(items, Collection) else None, unit)
        try:
            for done, item in enumerate(items, 1):
                yield item
                self.update(task, done)
        finally:  # also if the caller stops early
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


class TrainingBar:
    """One bar for a whole training, in steps: a mirrored or plain image read, or a part of a stage of the head."""

    STAGE = 8  # steps

    def __init__(self, progress: Progress, views: int) -> None:
        self._progress, self._views = progress, views
        self._read, self._trained, self._training, self._part, self._map = 0, 0.0, 0, "features", ""
        self._task = progress.add(self._part, views)

    def track(self, items: Iterable[int]) -> Iterable[int]:
        """Yield the images whose features are read."""
        for item in items:
            yield item
            self._read += 1
            self._show()

    def callback(self, done: "Round") -> None:
        """Show a round of training."""
        detail(str(done))
        self._trained = self.STAGE * (done.stage - 1 + done.round / done.rounds)
        if done.held_out is not None:
            self._map = f", mAP {done.held_out:.2f}"
        self._part, self._training = done.part + self._map, self.STAGE * done.stages
        self._show()

    def _show(self) -> None:
        total = max(self._views, self._read) + self._training  # boxes' training reads images again
        self._progress.update(self._task, round(self._read + self._trained), total=total, description=self._part)
