"""Class names from a user's text file. No torch is loaded."""

import os
from pathlib import Path

from densescore.errors import DensescoreError, reason_of

_MAX_BYTES = 16 * 2**20


def read_label_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, one class name each, in the order of the network's outputs.

    Blanks around a name are dropped, and so are empty lines at the end.

    Raises:
        DensescoreError: there is no such file; it is not text, or too large; a line is empty; or a name is repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise DensescoreError(f"{path}: no such file of labels; expected a text file with one class name a line")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DensescoreError(f"{path}: too large for a file of labels ({path.stat().st_size:,} bytes)")
        lines = path.read_text("utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DensescoreError(f"{path}: cannot be read as UTF-8 text: {reason_of(error)}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        label = line.strip()
        if not label:
            raise DensescoreError(f"{path}: line {number} is empty; expected one class name a line")
        if label in seen:
            raise DensescoreError(f"{path}: line {number} repeats the label {label!r} of line {seen[label]}")
        seen[label] = number
    return tuple(seen)
