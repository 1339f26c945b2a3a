"""What a user names → the images of a run: folders, patterns, lists of any length, and frames of videos."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from densescore.errors import DensescoreError
from densescore.io.find_images import each_once, exists, list_images, matching, read_list
from densescore.io.video import frame_names, is_video


def find_inputs(inputs: Sequence[str | os.PathLike[str]], fps: float | None = None) -> list[str]:
    """Image files, and frames of videos (``clip.mp4#t=2.5``), in a fixed order, each once.

    Args:
        inputs: each a folder (searched at any depth), an image file, a pattern (``photos/**/*.jpg``), a list of paths
            (``.txt``, one a line, relative to the working directory; UTF-8, or with a byte order mark), or ``-``: such
            a list on standard input. Files of a list are not looked for now: one that is missing is an error in its
            own row later.
        fps: frames per second of videos, 1 by default; see `densescore.io.video.frame_names`. Given, videos are also
            taken out of folders.

    Raises:
        DensescoreError: nothing is there, or nothing was found.

    Example:
        >>> import skimage
        >>> [Path(path).name for path in find_inputs([f"{skimage.data_dir}/chel*.png"])]
        ['chelsea.png']
    """
    paths = each_once(path for entry in inputs for path in _find(os.fspath(entry), videos=fps is not None))
    return [name for path in paths for name in image_names(path, fps)]


def image_names(path: str | os.PathLike[str], fps: float | None = None) -> Iterable[str]:
    """Of a video the names of its frames, of anything else the path; see `find_inputs`."""
    return frame_names(path, 1.0 if fps is None else fps) if is_video(path) else [os.fspath(path)]


def _find(text: str, *, videos: bool) -> Iterable[str]:
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
    return map(str, list_images([path], videos=videos))
