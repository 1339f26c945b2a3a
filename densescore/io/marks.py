"""The mark by which densescore knows the folders that it made; it deletes and replaces no others.

A folder's mark is the file ``.densescore`` in it: what the folder is, and which names belong in it.
A zarr folder of `densescore score` has its mark in ``zarr.json`` instead, where readers of zarr expect no other files.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from densescore.errors import DensescoreError, WriteError

MARK = ".densescore"

ARRAYS = "arrays"
"""The kind of a zarr folder beside a table."""

SCRATCH = ".densescore-*"
"""Names of the folders in which files are written before they take their place."""

ZARR = r"(\w+/)*(zarr\.json|[\w.-]+\.partial|c(/\d+)*|\d+)"
"""The names that zarr gives to what is in a group's folder, as a regular expression."""

_EVERYWHERE = (r"(.*/)?(\.DS_Store|Thumbs\.db)", rf"{re.escape(MARK)}(-[0-9a-f]{{8}}(/.*)?)?")
# What file managers leave in every folder that they show; the mark, and folders that killed runs left.


class Mark(NamedTuple):
    """What a folder is, as densescore noted when it made it.

    Attributes:
        kind: such as ``"heatmaps"`` or ``"parts of a table"``.
        holds: regular expressions of the names of what belongs in it, relative to it.
    """

    kind: str
    holds: tuple[str, ...]


def write_mark(folder: Path, kind: str, holds: Sequence[str]) -> None:
    """Mark a folder that was just made."""
    text = json.dumps({"made by": "densescore", "kind": kind, "holds": list(holds)}, indent=1)
    (folder / MARK).write_text(text + "\n")


def read_mark(folder: Path) -> Mark | None:
    """A folder's mark; None where it has none."""
    for name in (MARK, "zarr.json"):
        try:
            found = json.loads((folder / name).read_bytes())
            if name == "zarr.json":
                return Mark(ARRAYS, (ZARR,)) if "densescore" in found["attributes"] else None
            if found["made by"] == "densescore":
                return Mark(str(found["kind"]), tuple(re.compile(pattern).pattern for pattern in found["holds"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, re.error):
            continue
    return None


def foreign(folder: Path, mark: Mark) -> Iterator[str]:
    """Names in a marked folder that do not belong to it: somebody put them there.

    Raises:
        DensescoreError: a folder in it cannot be looked into.
    """
    ours = re.compile("|".join(f"(?:{pattern})" for pattern in (*_EVERYWHERE, *mark.holds)), re.DOTALL)
    for at, folders, files in os.walk(folder, onerror=_refuse):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        for name in [*files, *links, *([""] if not folders and not files else [])]:  # "": an empty folder
            relative = os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
            if relative != "." and not ours.fullmatch(relative):
                yield relative


def _refuse(error: OSError) -> None:
    raise DensescoreError(f"{error.filename}: cannot be looked into: {error.strerror}") from error


def is_blank(folder: Path) -> bool:
    """Whether a folder holds nothing, or only the beginning of a mark that a kill cut off.

    Raises:
        DensescoreError: it cannot be looked into.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        _refuse(error)
    return not names or (names == [MARK] and not (folder / MARK).stat().st_size)


def claim(folder: Path, kind: str, holds: Sequence[str]) -> None:
    """Make a folder that will grow, or take up one of the same kind that was made earlier.

    Args:
        folder: absent, empty, or marked.
        kind: see `Mark`.
        holds: see `Mark`.

    Raises:
        DensescoreError: it holds something that densescore did not make, or made for another purpose; or it cannot be
            written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = read_mark(folder)
        if mark is None:
            if not is_blank(folder):
                raise DensescoreError(f"{folder}: exists already, and densescore did not make it; choose another name")
            write_mark(folder, kind, holds)
        elif mark.kind != kind:
            raise DensescoreError(
                f"{folder}: exists already, and densescore made it for something else ({mark.kind}, not {kind}); "
                "choose another name"
            )
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}") from error
