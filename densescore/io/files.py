"""Files and folders are written whole or not at all, and what densescore did not make is not deleted."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from densescore.errors import DensescoreError, WriteError
from densescore.io.locks import take
from densescore.io.marks import MARK, SCRATCH, foreign, is_blank, read_mark, write_mark

Place = str | os.PathLike[str]


@contextmanager
def atomic_write(
    path: Place, *, overwrite: bool = False, folder: str = "", inputs: Iterable[Place] = (), sweep: bool = True
) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes `path`'s place when the block ends without error.

    What is written gets the mode that the umask asks for, whatever library wrote it.

    Args:
        path: the file, or folder, to write; parents are made.
        overwrite: replace what is there, if `check_replaceable` allows it.
        folder: if `path` is a folder, what it is, such as ``"heatmaps"``. The temporary one exists already; it is
            marked in the end, and only a folder with the same mark is ever replaced by it.
        inputs: files and folders that are read for it, which it must not replace.
        sweep: first clear away what killed runs left in the parent folder. Off where a caller with many files to
            write has done so.

    Raises:
        DensescoreError: `path` may not be replaced, or it cannot be written: a full disk, no permission, a name that
            is too long.
    """
    path = Path(path)
    check_replaceable(path, overwrite=overwrite, folder=folder, inputs=inputs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sweep:
            clear_scratch(path.parent)
        with scratch_folder(path.parent) as scratch:
            temporary = scratch / "new" / path.name
            (temporary if folder else temporary.parent).mkdir(parents=True)
            yield temporary
            if folder:
                write_mark(temporary, folder, [re.escape(name) for name in _inside(temporary)])
            _give_umask_mode(temporary, scratch.stat().st_mode)
            if folder and os.path.lexists(path):  # a folder cannot be replaced in one step
                (scratch / "old").mkdir()
                path.rename(scratch / "old" / path.name)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"{path}: cannot be written: {reason}") from error


def check_replaceable(path: Place, *, overwrite: bool = False, folder: str = "", inputs: Iterable[Place] = ()) -> None:
    """Refuse to write to a path where that would cost something that densescore did not make.

    With `overwrite`, a regular file may be replaced by a file. A folder may be replaced by a folder if it is empty, or
    if its mark says that densescore made it for the same purpose and nobody has put other files into it.

    Args:
        path: that is to be written.
        overwrite: what is there may be replaced.
        folder: if `path` is to be a folder, what it is; see `atomic_write`.
        inputs: files and folders of the run: neither they nor what holds them is replaced.

    Raises:
        DensescoreError: `path` exists and may not be replaced; the message says why.
    """
    path = Path(path)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # the name is too long, or holds a NUL; no permission to look
        raise WriteError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if not overwrite:
        raise DensescoreError(f"{path}: exists already; choose another name, or overwrite")
    try:
        status = path.stat()
    except OSError:  # a link to nothing
        status = path.lstat()
    needed = _needed(status, [*inputs, *([os.getcwd()] if folder else [])])
    if needed is not None:
        raise DensescoreError(f"{path}: is not replaced, because this run needs {needed}; choose another name")
    if not folder:
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "device or pipe"
            raise DensescoreError(f"{path}: is a {kind}, which is not replaced by a file; choose another name")
    elif not stat.S_ISDIR(status.st_mode):
        raise DensescoreError(f"{path}: is a file, which is not replaced by a folder; choose another name")
    elif not is_blank(path):
        check_own(path, folder)


def check_own(path: Path, kind: str) -> None:
    """Refuse to replace or delete a folder unless densescore made all of it, for the purpose `kind`.

    Raises:
        DensescoreError: it has no such mark, or holds other files.
    """
    mark = read_mark(path)
    if mark is None or mark.kind != kind:
        made = "densescore did not make it" if mark is None else f"densescore made it for something else ({mark.kind})"
        raise DensescoreError(f"{path}: is not replaced, because {made}; choose another name")
    if (other := next(foreign(path, mark), None)) is not None:
        raise DensescoreError(f"{path}: is not replaced, because densescore did not make {other} in it")


def remove_folder(path: Path, kind: str) -> None:
    """Delete a folder that densescore made for the purpose `kind`, but nothing that somebody put into it.

    The folder loses its name first, in one step, so that a kill leaves no half of it. One without the mark stays.
    """
    mark = read_mark(path)
    if mark is None or mark.kind != kind:
        return
    kept = set(foreign(path, mark))
    if not kept:
        with scratch_folder(path.parent) as scratch:
            path.rename(scratch / path.name)
        return
    for name in reversed(_inside(path)):  # the deepest first
        if name not in kept:
            with suppress(OSError):  # a folder that holds what is kept
                (path / name).rmdir() if _is_folder(path / name) else (path / name).unlink()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, locked while it is in use, and deleted in the end.

    What its block has moved into its folder ``old`` goes back to where it was, if nothing has taken its place.
    """
    while True:
        folder = parent / f".densescore-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        try:
            held = _hold(folder / MARK)
        except FileNotFoundError:  # cleared away by another process before we had locked it
            continue
        if held is not None:
            break
    try:
        yield folder
    finally:
        _discard(folder, held)


def clear_scratch(parent: Path) -> None:
    """Delete the temporary folders that killed runs left in `parent`; those of living ones are locked, and stay."""
    for folder in parent.glob(f"{SCRATCH[:-1]}{'[0-9a-f]' * 8}"):
        with suppress(OSError):  # somebody else's, or gone meanwhile, or a file system without locks
            if not (folder / MARK).is_file():
                folder.rmdir()  # killed right after it was made; fails where anything is in it
            elif (held := take(folder / MARK)) is not None:
                _discard(folder, held)


def _hold(path: Path) -> IO[bytes] | None:
    try:
        return take(path)
    except FileNotFoundError:
        raise
    except OSError:  # no locks here, so that nothing will be cleared away either
        return path.open("ab")


def _discard(scratch: Path, held: IO[bytes]) -> None:
    """Put back what was set aside and is missing, and delete the rest; the mark last, so that a kill leaves it."""
    old = scratch / "old"
    for path in old.iterdir() if old.is_dir() else ():
        if not os.path.lexists(scratch.parent / path.name):
            path.rename(scratch.parent / path.name)
    for name in os.listdir(scratch):
        if name != MARK:
            shutil.rmtree(scratch / name, ignore_errors=True)
    held.close()
    shutil.rmtree(scratch, ignore_errors=True)


def _give_umask_mode(path: Path, mode: int) -> None:
    """Give what was written the permissions of a new folder, and files the same without the right to execute."""
    for name in ["", *_inside(path)] if path.is_dir() else [""]:
        file = path / name
        before = file.lstat().st_mode
        wanted = mode & (0o777 if stat.S_ISDIR(before) else 0o666)
        if not stat.S_ISLNK(before) and before & 0o777 != wanted:
            file.chmod(before & 0o7000 | wanted)


def _inside(folder: Path) -> list[str]:
    """Names of all that a folder holds at any depth, relative to it, each after the folder that holds it."""
    found = [
        os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
        for at, folders, files in os.walk(folder)
        for name in [*folders, *files]
    ]
    return sorted(found)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _needed(status: os.stat_result, inputs: Iterable[Place]) -> Place | None:
    """The first input that is the file or folder of `status`, or lies in it, by its name or by what it links to."""
    known: dict[str, bool] = {}

    def within(folder: str) -> bool:
        if folder not in known:
            real = Path(os.path.realpath(folder))
            known[folder] = any(_is(status, path) for path in (real, *real.parents))
        return known[folder]

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
