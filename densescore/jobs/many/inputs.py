"""What a user names → the images of a run: folders, patterns and lists of any length."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from densescore.errors import DensescoreError
from densescore.io.find_images import each_once, exists, list_images, matching, read_list


def find_inputs(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Image files in a fixed order, each once.

    Args:
        inputs: each a folder (searched at any depth), an image file, a pattern (``photos/**/*.jpg``), a list of paths
            (``.txt``, one a line, relative to the working directory; UTF-8, or with a byte order mark), or ``-``: such
            a list on standard input. Files of a list are not looked for now: one that is missing is an error in its
            own row later.

    Raises:
        DensescoreError: nothing is there, or nothing was found.

    Example:
        >>> import skimage
        >>> [Path(path).name for path in find_inputs([f"{skimage.data_dir}/chel*.png"])]
        ['chelsea.png']
    """
    return each_once(path for entry in inputs for path in _find(os.fspath(entry)))


def _find(text: str) -> Iterable[str]:
    if text == "-":
        stream = getattr(sys.stdin, "buffer", None)
        data = sys.stdin.read().encode("utf-8", "surrogateescape") if stream is None else stream.read()
        return read_list(data, "standard input")
    path = Path(text)
    there = exists(path)
    if path.suffix.lower() == ".txt" and there and path.is_file():
        try:
            return read_list(path.read_bytes(), text)
        except OSError as error:
            raise DensescoreError(f"{text}: cannot be read: {error.strerror}") from error
    if not there and any(character in text for character in "*?["):
        files = matching(text)
        if not files:
            raise DensescoreError(f"{text}: no file matches the pattern")
        return files
    return map(str, list_images([path]))
