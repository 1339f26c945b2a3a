"""Writes files and folders whole or not at all, and deletes nothing that densescore did not make."""

import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from safetensors import SafetensorError

from densescore.errors import DensescoreError, WriteError
from densescore.io.names import shorten, to_json

if sys.platform == "win32":
    import msvcrt

    _LOCKED: type[OSError] = PermissionError

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    _LOCKED: type[OSError] = BlockingIOError

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


Place = str | os.PathLike[str]

MARK = ".densescore"
"""File in each folder of densescore's: the folder's kind, and the names that belong in it."""

ARRAYS = "arrays"
"""Kind of a zarr folder beside a table."""

SCRATCH = ".densescore-*"
"""Names of temporary folders."""

ZARR = r"(\w+/)*(zarr\.json|[\w.-]+\.partial|c(/\d+)*|\d+)"
"""Names that zarr writes below a group, as a regular expression."""

# File managers' files, the mark, and temporary folders of killed runs.
_EVERYWHERE = (r"(.*/)?(\.DS_Store|Thumbs\.db)", rf"{re.escape(MARK)}(-[0-9a-f]{{8}}(/.*)?)?")


# --- Write a file or a folder in one piece ---


@contextmanager
def write_errors(path: Place, advice: str = "") -> Iterator[None]:
    """Raise failed writes, a full disk among them, as `WriteError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path}: cannot be written: {_reason(error)}{advice}") from error


@contextmanager
def atomic_write(
    path: Place, *, overwrite: bool = False, folder: str = "", inputs: Iterable[Place] = (), sweep: bool = True
) -> Iterator[Path]:
    """Give a temporary path beside `path`, which replaces `path` when the block ends without error.

    For a `folder` of this kind it exists already, and is marked; `sweep` first deletes leftovers of killed runs.
    """
    path = Path(path)
    check_replaceable(path, overwrite=overwrite, folder=folder, inputs=inputs)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if sweep:
            clear_scratch(path.parent)
        with scratch_folder(path.parent) as scratch:
            temporary = scratch / "new" / path.name
            (temporary if folder else temporary.parent).mkdir(parents=True)
            yield temporary
            # Mark it, and give it the mode of the umask
            if folder:
                write_mark(temporary, folder, [re.escape(name) for name in _names_in(temporary)])
            _give_umask_mode(temporary, scratch.stat().st_mode)
            # Move it into place, unless something has come there meanwhile; a folder takes two steps
            check_replaceable(path, overwrite=overwrite, folder=folder, inputs=inputs)
            if folder and os.path.lexists(path):
                (scratch / "old").mkdir()
                old = path.rename(scratch / "old" / path.name)  # returns if refused
                if not _is_blank(old):
                    _check_own(old, folder)
            if overwrite and not folder:
                temporary.replace(path)
            else:
                _move_new(temporary, path)


def _move_new(temporary: Path, path: Path) -> None:
    """Give a file or folder its name in one step that fails if the name is taken; an empty folder may be replaced."""
    try:
        if sys.platform == "win32" or temporary.is_dir():
            temporary.rename(path)  # onto a file, or a folder with content, it fails
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: take the name first
            path.open("xb").close()
            temporary.replace(path)
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise DensescoreError(f"{path}: has come into being since the run began; choose another name") from error


def check_replaceable(path: Place, *, overwrite: bool = False, folder: str = "", inputs: Iterable[Place] = ()) -> None:
    """Raise if a path exists, or, with `overwrite`, if replacing it could cost the user a file or this run an input.

    A file may replace a regular file; a `folder` an empty folder, or one with files of the same kind and no others.
    """
    path = Path(path)
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # name too long or with a NUL, no permission
        raise WriteError(f"{path}: cannot be written: {_reason(error)}") from error
    if not overwrite:
        raise DensescoreError(f"{path}: exists already; choose another name, or --overwrite (overwrite=True)")
    with suppress(OSError):  # a link to nothing
        status = path.stat()
    needed = _needed(status, [*inputs, *([os.getcwd()] if folder else [])])
    if needed is not None:
        raise DensescoreError(f"{path}: is not replaced, because this run needs {needed}; choose another name")
    if not folder:
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "device or pipe"
            raise DensescoreError(f"{path}: is a {kind}, which is not replaced by a file; choose another name")
    elif not stat.S_ISDIR(status.st_mode):
        raise DensescoreError(f"{path}: is a file, which is not replaced by a folder; choose another name")
    elif not _is_blank(path):
        _check_own(path, folder)


def _needed(status: os.stat_result, inputs: Iterable[Place]) -> Place | None:
    """The first input that is the file or folder of `status`, or lies in it, by its name or as the target of a link."""

    @lru_cache(None)
    def within(folder: str) -> bool:
        real = Path(os.path.realpath(folder))
        return any(_is(status, path) for path in (real, *real.parents))

    for item in inputs:
        path = os.path.abspath(item)
        linked = os.path.islink(path) and within(os.path.dirname(os.path.realpath(path)))
        if _is(status, path) or within(os.path.dirname(path)) or linked:
            return item
    return None


def _is(status: os.stat_result, path: Place) -> bool:
    try:
        return os.path.samestat(status, os.stat(path))
    except OSError:
        return False


def _give_umask_mode(path: Path, mode: int) -> None:
    """Give folders the mode of a new folder, and files the same without the right to execute."""
    for file in [path, *(path / name for name in _names_in(path))]:
        before = file.lstat().st_mode
        wanted = mode & (0o777 if stat.S_ISDIR(before) else 0o666)
        if not stat.S_ISLNK(before) and before & 0o777 != wanted:
            file.chmod(before & 0o7000 | wanted)


def _names_in(folder: Path) -> list[str]:
    """Relative names of all files and folders below a folder, parents first; none for a file."""
    return sorted(
        os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
        for at, folders, files in os.walk(folder)
        for name in [*folders, *files]
    )


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error


# --- Marked folders ---


class Mark(NamedTuple):
    """Mark of a folder: its kind, and regular expressions of the relative names that belong in it."""

    kind: str
    holds: tuple[str, ...]


def write_mark(folder: Path, kind: str, holds: Sequence[str]) -> None:
    """Mark a new folder."""
    text = to_json({"made by": "densescore", "kind": kind, "holds": list(holds)}, indent=1)
    (folder / MARK).write_text(text + "\n")


def read_mark(folder: Path) -> Mark | None:
    """Mark of a folder, or of a zarr group with densescore's attribute; None if there is none."""
    for name in (MARK, "zarr.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, re.error):
            record = json.loads((folder / name).read_bytes())
            if name == "zarr.json":
                return Mark(ARRAYS, (ZARR,)) if "densescore" in record["attributes"] else None
            if record["made by"] == "densescore":
                return Mark(str(record["kind"]), tuple(re.compile(pattern).pattern for pattern in record["holds"]))
    return None


def foreign(folder: Path, mark: Mark) -> Iterator[str]:
    """Names in a marked folder that do not belong to it."""
    ours = re.compile("|".join(f"(?:{pattern})" for pattern in (*_EVERYWHERE, *mark.holds)), re.DOTALL)
    for at, folders, files in os.walk(folder, onerror=_raise_unreadable):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        for name in [*files, *links, *([""] if not folders and not files else [])]:  # "": an empty folder
            relative = os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
            if relative != "." and not ours.fullmatch(relative):
                yield relative


def claim(folder: Path, kind: str, holds: Sequence[str]) -> None:
    """Make and mark a folder that will grow, or continue one of the same kind, cleared of leftovers of killed runs."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mark = read_mark(folder)
        if mark is None:
            if not _is_blank(folder):
                raise DensescoreError(f"{folder}: exists already, and densescore did not make it; choose another name")
            write_mark(folder, kind, holds)
        elif mark.kind != kind:
            raise DensescoreError(
                f"{folder}: exists already, and densescore made it for something else ({mark.kind}, not {kind}); "
                "choose another name"
            )
        clear_scratch(folder)


def remove_folder(path: Path, kind: str) -> None:
    """Delete a folder of densescore's of this kind, but no foreign file in it; any other folder stays."""
    mark = read_mark(path)
    if mark is None or mark.kind != kind:
        return
    strangers = set(foreign(path, mark))
    if not strangers:
        with scratch_folder(path.parent) as scratch:  # in one step: a kill leaves no half of it
            path.rename(scratch / path.name)
        return
    for name in reversed(_names_in(path)):  # the deepest first
        if name not in strangers:
            file = path / name
            with suppress(OSError):  # a folder with foreign files
                file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


def _check_own(path: Path, kind: str) -> None:
    mark = read_mark(path)
    if mark is None or mark.kind != kind:
        made = "densescore did not make it" if mark is None else f"densescore made it for something else ({mark.kind})"
        raise DensescoreError(f"{path}: is not replaced, because {made}; choose another name")
    if (other := next(foreign(path, mark), None)) is not None:
        raise DensescoreError(f"{path}: is not replaced, because densescore did not make {other} in it")


def _is_blank(folder: Path) -> bool:
    """Whether a folder is empty, or holds only an empty mark that a killed run left."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        _raise_unreadable(error)
    return not names or (names == [MARK] and not (folder / MARK).stat().st_size)


def _raise_unreadable(error: OSError) -> None:
    raise DensescoreError(f"{error.filename}: cannot be read: {error.strerror}") from error


# --- Temporary folders and locks, which end with their process ---


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A locked temporary folder in `parent`, deleted at the end.

    Contents of its subfolder ``old`` move back to `parent` unless their names have been taken.
    """
    while True:
        folder = parent / f".densescore-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            lock = _take(folder / MARK)
        except FileNotFoundError:  # another process cleared it before it was locked
            continue
        except OSError:  # a file system without locks, where nothing is cleared either
            lock = (folder / MARK).open("ab")
        if lock is not None:
            break
    try:
        yield folder
    finally:
        _discard(folder, lock)


def clear_scratch(parent: Path) -> None:
    """Delete temporary folders of killed runs in `parent`; those of running processes are locked, and stay."""
    for folder in parent.glob(f"{SCRATCH[:-1]}{'[0-9a-f]' * 8}"):
        with suppress(OSError):  # foreign, gone by now, or without locks
            if not (folder / MARK).is_file():
                folder.rmdir()  # killed right after mkdir; fails unless empty
            elif (lock := _take(folder / MARK)) is not None:
                _discard(folder, lock)


def _discard(scratch: Path, lock: IO[bytes]) -> None:
    """Move files in ``old`` back unless they were replaced, then delete the rest; the mark last, in case of a kill."""
    old = scratch / "old"
    for path in old.iterdir() if old.is_dir() else ():
        if not os.path.lexists(scratch.parent / path.name):
            path.rename(scratch.parent / path.name)
    for name in os.listdir(scratch):
        if name != MARK:
            shutil.rmtree(scratch / name, ignore_errors=True)
    lock.close()
    shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one run at a time write to `path`, by a lock file ``.NAME.densescore-lock`` beside it."""
    whole = Path(os.path.abspath(path))
    file = whole.parent / f".{shorten(whole.name)}.densescore-lock"
    with write_errors(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _take(file)
    if lock is None:
        raise DensescoreError(f"{path}: another run is writing it at this moment")
    try:
        yield
    finally:
        with suppress(OSError):
            if not file.stat().st_size:  # ours are empty
                file.unlink()  # before the release: a process that has opened it tries again
        lock.close()


def _take(path: Path) -> IO[bytes] | None:
    """Create a file if needed and lock it until it is closed; None if another process holds it."""
    while True:
        file = path.open("ab")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except _LOCKED:
            file.close()
            return None
        except FileNotFoundError:  # its last holder has deleted it since it was opened
            pass
        except BaseException:
            file.close()
            raise
        file.close()
