"""Files and folders are written whole or not at all, and never over others unasked."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from densescore.errors import DensescoreError


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes `path`'s place when the block ends without error.

    Args:
        path: the file, or folder, to write; parents are made.
        overwrite: replace what is there.
        folder: `path` is a folder; the temporary one exists already.

    Raises:
        DensescoreError: `path` exists and `overwrite` is off, or it cannot be written: a full disk, no permission.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DensescoreError(f"{path}: exists already; choose another name, or overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise DensescoreError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        temporary = scratch / path.name
        if folder:
            temporary.mkdir()
        yield temporary
        if path.is_dir():  # a folder cannot be replaced in one step: set it aside, and it goes with the scratch folder
            path.rename(scratch / "replaced")
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DensescoreError(f"{path}: cannot be written: {reason}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
