"""Finds files: folders, patterns and lists of paths → image files."""

import codecs
import difflib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from densescore.errors import DensescoreError
from densescore.io.files import SCRATCH
from densescore.io.names import refuse_url
from densescore.io.video import VIDEO_SUFFIXES

PICTURE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
     ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi",
     ".tga", ".tif", ".tiff", ".webp"}
)  # fmt: skip
"""Suffixes, in lower case, of pictures in folders. A file that is named itself may have any."""

_MAGIC = re.compile(r"[*?\[]")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def list_images(paths: Sequence[str | os.PathLike[str]], *, videos: bool = False) -> list[Path]:
    """Image files, each once: files as named; of folders the pictures (and videos) at any depth, sorted.

    Links to folders inside a folder are not followed; a Mac's shadow files ``._NAME`` are left out.
    """
    files: list[str] = []
    suffixes = PICTURE_SUFFIXES | VIDEO_SUFFIXES if videos else PICTURE_SUFFIXES
    for name in paths:
        refuse_url(name)
        if not exists(name):  # "" is no name of the working folder
            raise DensescoreError(f"{os.fspath(name) or repr('')}: no such file or folder{near_files(name)}")
        path = Path(name)
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
        files += inside
    return list(map(Path, each_once(files)))


def is_picture(path: PurePath) -> bool:
    """Whether a file is a picture by its suffix; hidden files, such as a Mac's ``._a.jpg``, are none."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def files_in(folder: Path) -> list[Path]:
    """All files of a folder at any depth, sorted; hidden ones are left out, and linked folders are entered once."""
    places = walk(str(folder), hidden=False, links=True)
    return sorted(Path(at, name) for at, names in places for name in names if not name.startswith("."))


def pictures_in(folder: Path) -> list[Path]:
    """All pictures of a folder at any depth, sorted."""
    return [path for path in files_in(folder) if is_picture(path)] if folder.is_dir() else []


def is_file(path: Path) -> bool:
    """Whether a path is a regular file: no folder, device or pipe, and a name that the system can hold."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # name too long, or with a NUL or a lone surrogate
        return False


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder; an error if the system cannot say (name too long, no permission)."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise DensescoreError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return True


def near_files(path: str | os.PathLike[str]) -> str:
    """``"; did you mean …?"`` with the files beside a missing one whose names are most like its own, or nothing."""
    folder, name = os.path.split(path)
    names = [entry.name for entry in _scan(folder)] if os.path.isdir(folder or ".") else []
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.8)
    return f"; did you mean {', '.join(os.path.join(folder, other) for other in near)}?" if near else ""


def walk(folder: str, *, hidden: bool = True, links: bool = False) -> Iterator[tuple[str, list[str]]]:
    """A folder and all folders below it, each with the sorted names of its files.

    `hidden`: enter folders whose names begin with a dot; `links`: enter linked folders, each real folder once.
    """
    waiting, entered = [folder], set[str]()
    while waiting:
        at = waiting.pop()
        if links:
            real = os.path.realpath(at)
            if real in entered:
                continue
            entered.add(real)
        entries = [(entry.name, entry.is_dir(follow_symlinks=links)) for entry in _scan(at)]
        folders = [name for name, is_folder in entries if is_folder]
        skipped = SCRATCH[:-1] if hidden else "."
        waiting += [os.path.join(at, name) for name in reversed(folders) if not name.startswith(skipped)]
        yield at, [name for name, is_folder in entries if not is_folder]


def matching(pattern: str) -> list[str]:
    """Files that match a pattern, sorted, each once: ``*``, ``?``, ``[…]``, and ``**`` for folders at any depth.

    A part that exists as written is a name. ``**`` does not follow links; hidden names need a dot, as in a shell.
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
    if os.path.lexists(named):
        yield from _expand(named, rest)
    elif not _MAGIC.search(part) or not os.path.isdir(at or "."):
        return
    elif part == "**":
        for folder, _ in walk(at, hidden=False):
            yield from _expand(folder, rest)
    else:
        for entry in _scan(at):
            if fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                yield from _expand(os.path.join(at, entry.name), rest)


def _scan(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DensescoreError(f"{folder}: cannot be read: {error.strerror}") from error


def each_once(paths: Iterable[str]) -> list[str]:
    """Paths without those that reach the same name in the same real folder again; links to files count as files."""
    real_folders: dict[str, str] = {}
    unique: dict[tuple[str, str], str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        unique.setdefault((real_folders[folder], name), path)
    return list(unique.values())


def read_list(data: bytes, name: str) -> list[str]:
    """Paths of a text, one a line; bytes that are not UTF-8 are kept. `name` is for messages."""
    try:
        text = decode_text(data, errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise DensescoreError(f"{name}: begins as {error.encoding.upper()}, but is not: {error.reason}") from error
    if "\0" in text:
        raise DensescoreError(f"{name}: not a list of paths: it holds a NUL character; save it as UTF-8")
    lines = [line for line in (line.rstrip("\r") for line in text.split("\n")) if line.strip()]
    if not lines:
        raise DensescoreError(f"{name}: the list names no images")
    return lines


def decode_text(data: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Text in the encoding of its byte order mark, else in `encoding`; `errors` is for UTF-8."""
    for mark, marked in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], marked
            break
    return data.decode(encoding, errors if encoding == "utf-8" else "strict")
