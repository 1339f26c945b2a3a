"""What a user names → the images of a run: folders, patterns and lists of any length."""

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from densescore.errors import DensescoreError
from densescore.io.images import list_images

_MAGIC = frozenset("*?[")


def find_inputs(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Image files in a fixed order, each once.

    Args:
        inputs: each a folder (searched at any depth), an image file, a pattern (``photos/**/*.jpg``), a list of paths
            (``.txt``, one a line, relative to the working directory), or ``-``: such a list on standard input.
            Files of a list are not looked for now: one that is missing is an error in its own row later.

    Raises:
        DensescoreError: nothing is there, or nothing was found.

    Example:
        >>> import skimage
        >>> [Path(path).name for path in find_inputs([f"{skimage.data_dir}/chel*.png"])]
        ['chelsea.png']
    """
    found: dict[str, None] = {}
    for entry in inputs:
        found.update(dict.fromkeys(_find(os.fspath(entry))))
    return list(found)


def _find(text: str) -> Iterable[str]:
    if text == "-":
        return _lines(sys.stdin, "standard input")
    path = Path(text)
    if path.suffix == ".txt" and path.is_file():
        try:
            with path.open(encoding="utf-8", errors="surrogateescape") as file:
                return _lines(file, text)
        except OSError as error:
            raise DensescoreError(f"{text}: cannot be read: {error.strerror}") from error
    if not path.exists() and _MAGIC & set(text):
        files = sorted(match for match in glob.iglob(text, recursive=True) if os.path.isfile(match))
        if not files:
            raise DensescoreError(f"{text}: no file matches the pattern")
        return files
    return map(str, list_images([path]))


def _lines(file: Iterable[str], name: str) -> list[str]:
    lines = [line for line in (line.rstrip("\r\n") for line in file) if line.strip()]
    if not lines:
        raise DensescoreError(f"{name}: the list names no images")
    return lines
