"""Locks on files: the system releases them when their process ends, however it ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from densescore.errors import DensescoreError, WriteError
from densescore.io.names import shorten

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    _TAKEN: tuple[type[OSError], ...] = (PermissionError,)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    _TAKEN = (BlockingIOError,)


def take(path: Path) -> IO[bytes] | None:
    """Make the file at `path` if it is absent, and lock it until the result is closed; None if somebody else holds it.

    Raises:
        OSError: the file cannot be made, or the file system has no locks.
    """
    while True:
        file = path.open("ab")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except _TAKEN:
            file.close()
            return None
        except FileNotFoundError:  # its last holder deleted it after we had opened it
            pass
        except BaseException:
            file.close()
            raise
        file.close()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one run at a time write to `path`. The lock is the file ``.NAME.densescore-lock`` beside it, deleted after.

    Raises:
        DensescoreError: another run holds it, or the folder cannot be written.
    """
    whole = Path(os.path.abspath(path))
    beside = whole.parent / f".{shorten(whole.name)}.densescore-lock"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        held = take(beside)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error
    if held is None:
        raise DensescoreError(f"{path}: another run is writing it at this moment")
    try:
        yield
    finally:
        with suppress(OSError):
            if not beside.stat().st_size:  # ours are empty
                beside.unlink()  # before the lock is released: whoever opened it meanwhile looks again
        held.close()
