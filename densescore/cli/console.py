"""What the commands print: literal text, whatever a file or a label is called.

Results go to standard output; notes, errors and progress go to standard error. Nothing is read as markup, and
characters that a terminal would obey instead of show are made visible. Every text passes through `printable`.
"""

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from densescore.io.names import as_text, is_unicode

out = Console(markup=False, highlight=False, emoji=False)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)

_OBEYED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, separators of lines and of paragraphs
_DIRECTIONS = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


@dataclass
class Talk:
    """How much a command says beside its results, by ``--quiet`` and ``--verbose``, and whether a bar is shown."""

    quiet: bool = False
    verbose: bool = False
    bar: bool = False


talk = Talk()


def printable(value: object) -> str:
    r"""Text in which what a terminal obeys, or cannot show, is made visible.

    That is: control characters and escape sequences, marks that turn the direction of text around, and bytes of a file
    name that are not UTF-8.

    Example:
        >>> print(printable("red: \x1b[31m, a line:\n, a byte: \udcff"))
        red: \x1b[31m, a line:\n, a byte: \xff
    """
    return "".join(_visible(character) for character in str(value))


def _visible(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that Python could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in _OBEYED or character in _DIRECTIONS:
        return character.encode("unicode_escape").decode()
    return character


def _results() -> Console:
    """Where results go; above a progress bar, where both are on a terminal: only the bar's own console knows how."""
    return err if talk.bar and out.is_terminal else out


def say(text: str) -> None:
    """A line of the result."""
    _results().print(printable(text), soft_wrap=True)


def say_json(record: Any) -> None:
    """A result as one line of JSON; names that are not valid Unicode are written as `as_text` writes them."""
    _results().print(json.dumps(_unicode(record)), soft_wrap=True)
    sys.stdout.flush()


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return value if is_unicode(value) else as_text(value)
    if isinstance(value, dict):
        return {_unicode(key): _unicode(item) for key, item in value.items()}
    return [_unicode(item) for item in value] if isinstance(value, list | tuple) else value


def note(text: str) -> None:
    """A line beside the result; not with ``--quiet``."""
    if not talk.quiet:
        err.print(printable(text), soft_wrap=True)


def detail(text: str) -> None:
    """A line beside the result; only with ``--verbose``."""
    if talk.verbose:
        err.print(printable(text), soft_wrap=True)


def complain(error: object) -> None:
    """An error, in a line."""
    err.print(Text.assemble(("error:", "bold red"), " ", printable(error)), soft_wrap=True)


def show_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    last: Sequence[object] = (),
    numeric: bool = True,
) -> None:
    """A table of the result.

    Args:
        headings: of the columns.
        rows: their cells.
        title: above the table.
        last: one more row, apart from the others.
        numeric: columns but the first are numbers, and stand to the right.
    """
    table = Table(title=printable(title) if title else None, title_justify="left", title_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(printable(heading), justify="right" if numeric and index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    if last:
        table.add_section()
        table.add_row(*map(printable, last))
    _results().print(table)


def share(value: float | None) -> str:
    """A share in [0, 1] as a cell; a dash where it is not defined."""
    return "–" if value is None else f"{value:.3f}"


def describe_map(entry: Mapping[str, Any]) -> str:
    """A mapped class of a manifest as a part of a line."""
    return f"{entry['label']}: confidence {entry['confidence']:.2g}, map peak {entry['map_maximum']:.2g}"
