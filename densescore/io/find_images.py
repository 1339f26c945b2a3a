"""Folders, patterns and lists of paths → image files."""

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from densescore.errors import DensescoreError
from densescore.io.marks import SCRATCH
from densescore.io.video import VIDEO_SUFFIXES

PICTURE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
     ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi",
     ".tga", ".tif", ".tiff", ".webp"}
)  # fmt: skip
"""Suffixes, in lower case, of the files that are taken out of a folder. A file that is named itself may have any."""

_MAGIC = re.compile(r"[*?\[]")
_ENCODINGS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
              (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def list_images(paths: Sequence[str | os.PathLike[str]], *, videos: bool = False) -> list[Path]:
    """Image files: files as they are named, and what `PICTURE_SUFFIXES` says of folders, at any depth, sorted.

    With `videos`, also what `densescore.io.video.VIDEO_SUFFIXES` says of folders.

    Links to folders inside a folder are not followed, and the shadows ``._NAME`` that a Mac leaves are left out. A
    picture that is found again under another name of its folder is listed once.

    Raises:
        DensescoreError: a path does not exist or cannot be looked into, or a folder holds no image.
    """
    found: list[str] = []
    suffixes = PICTURE_SUFFIXES | VIDEO_SUFFIXES if videos else PICTURE_SUFFIXES
    for path in map(Path, paths):
        if not exists(path):
            raise DensescoreError(f"{path}: no such file or folder")
        inside = [str(path)]
        if path.is_dir():
            inside = sorted(
                str(Path(folder, name))
                for folder, names in walk(str(path))
                for name in names
                if os.path.splitext(f"x{name}")[1].lower() in suffixes and not name.startswith("._")
                and os.path.isfile(os.path.join(folder, name))
            )  # fmt: skip
            if not inside:
                raise DensescoreError(f"{path}: the folder holds no images{' and no videos' if videos else ''}")
        found += inside
    return list(map(Path, each_once(found)))


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder.

    Raises:
        DensescoreError: that cannot be told: the name is too long, holds a NUL, or a folder may not be looked into.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise DensescoreError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return True


def walk(folder: str, *, hidden: bool = True) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, each with the sorted names of what it holds but folders; links are not followed.

    Args:
        folder: where to begin.
        hidden: also folders whose names begin with a dot.

    Raises:
        DensescoreError: a folder cannot be looked into.
    """
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        files = []
        for entry in _scan(at):
            if not entry.is_dir(follow_symlinks=False):
                files.append(entry.name)
            elif not entry.name.startswith("." if not hidden else SCRATCH[:-1]):
                waiting.append(os.path.join(at, entry.name))
        yield at, sorted(files)


def matching(pattern: str) -> list[str]:
    """Files that a pattern matches, sorted, each once: ``*``, ``?``, ``[…]``, and ``**`` for folders at any depth.

    A part of the pattern that exists as it is written is a name, whatever characters are in it. ``**`` does not follow
    links to folders. As in a shell, a name that begins with a dot matches only where the pattern says the dot.

    Raises:
        DensescoreError: a folder on the way cannot be looked into.
    """
    drive, path = os.path.splitdrive(pattern)
    root = drive + (os.sep if path.startswith(os.sep) else "")
    parts = tuple(part for part in path.split(os.sep) if part)
    if parts and parts[-1] == "**":
        parts += ("*",)
    return each_once(file for file in sorted(set(_expand(root, parts))) if os.path.isfile(file))


def _expand(at: str, parts: tuple[str, ...]) -> Iterator[str]:
    if not parts:
        yield at
        return
    part, rest = parts[0], parts[1:]
    named = os.path.join(at, part)
    if os.path.lexists(named) or not _MAGIC.search(part):
        if os.path.lexists(named):
            yield from _expand(named, rest)
    elif part == "**":
        for folder, _ in walk(at, hidden=False) if os.path.isdir(at or ".") else ():
            yield from _expand(folder, rest)
    elif os.path.isdir(at or "."):
        for entry in _scan(at):
            if fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                yield from _expand(os.path.join(at, entry.name), rest)


def read_list(data: bytes, name: str) -> list[str]:
    """Paths, one a line, of a text in UTF-8 (bytes that are not, stay) or in what its byte order mark says.

    Args:
        data: the text.
        name: of the list, for messages.

    Raises:
        DensescoreError: it is no text, or names nothing.
    """
    encoding = next((encoding for mark, encoding in _ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        if encoding == "utf-8":
            text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
        else:
            text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DensescoreError(f"{name}: begins as {encoding.upper()}, but is not: {error.reason}") from error
    if "\0" in text:
        raise DensescoreError(f"{name}: not a list of paths: it holds a NUL character; save it as UTF-8")
    lines = [line for line in (line.rstrip("\r") for line in text.split("\n")) if line.strip()]
    if not lines:
        raise DensescoreError(f"{name}: the list names no images")
    return lines


def each_once(paths: Iterable[str]) -> list[str]:
    """Paths without those that name a file of an earlier one's folder again; a link to a file is a file of its own."""
    folders: dict[str, str] = {}
    found: dict[tuple[str, str], str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        found.setdefault((folders[folder], name), path)
    return list(found.values())


def _scan(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder or ".") as entries:
            return list(entries)
    except OSError as error:
        raise DensescoreError(f"{folder}: cannot be looked into: {error.strerror}") from error
