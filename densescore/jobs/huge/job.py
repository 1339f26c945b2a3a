"""The folder of a huge image's scores: what was asked, what is done, and the scores so far.

``.densescore`` the mark: a folder without it is never cleared
``job.json``    the image, model and geometry; a folder goes on only with the same
``scores.zarr`` per level, float32 ``[rows, cols, C]``
``done``        a line per finished tile, written after its scores: what is not in it is scored again
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, WriteError
from densescore.geometry import Level
from densescore.io.files import atomic_write, check_replaceable, clear_scratch, remove_folder
from densescore.io.marks import ZARR, claim
from densescore.io.names import text_values
from densescore.network.tiling import Tile

_CHUNK_CLASSES = 64
_KIND = "scores of a huge image"
_HOLDS = (r"job\.json", "done", r"result\.json", r"maps(/[^/]+\.tif)?", rf"scores\.zarr(/{ZARR})?")


class Job:
    """A folder of scores, new or begun earlier.

    Args:
        folder: to write to.
        asked: what the scores follow from, as plain JSON values.
        levels: of the image.
        classes: C.
        chunk: rows and columns of cells that a tile has.
        overwrite: begin again where `folder` holds another job.
        inputs: files of the run, which must not be in a folder that is cleared.

    Raises:
        DensescoreError: the folder holds something else, or cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        asked: dict[str, Any],
        levels: Sequence[Level],
        classes: int,
        chunk: tuple[int, int],
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        import zarr

        self.folder = Path(folder)
        self._journal = self.folder / "done"
        asked = json.loads(json.dumps(text_values(asked)))
        described = self.folder / "job.json"
        with self.writing():
            claim(self.folder, _KIND, _HOLDS)
            clear_scratch(self.folder)
            if not self._goes_on(described, asked, overwrite):
                check_replaceable(self.folder, overwrite=True, folder=_KIND, inputs=inputs)
                remove_folder(self.folder, _KIND)
                claim(self.folder, _KIND, _HOLDS)
            if not described.exists():
                group = zarr.open_group(self.folder / "scores.zarr", mode="w")
                for index, level in enumerate(levels):
                    shape = (level.rows, level.cols, classes)
                    chunks = (min(chunk[0], level.rows), min(chunk[1], level.cols), min(_CHUNK_CLASSES, classes))
                    group.create_array(str(index), shape=shape, chunks=chunks, dtype="float32")
                with atomic_write(described) as temporary:  # last: a folder with it is complete
                    temporary.write_text(json.dumps(asked, indent=2) + "\n")
            self._arrays: Any = zarr.open_group(self.folder / "scores.zarr", mode="r+")
        lines = self._journal.read_text().split("\n")[:-1] if self._journal.exists() else []
        self.done = {int(line) for line in lines if line.isdecimal()}

    def _goes_on(self, described: Path, asked: dict[str, Any], overwrite: bool) -> bool:
        """Whether the folder holds this very job, or nothing yet; False where it is to be cleared."""
        if not described.exists():  # killed while it was laid out, or new
            return not (self.folder / "scores.zarr").exists()
        try:
            before = json.loads(described.read_text())
        except ValueError as error:
            raise DensescoreError(f"{described}: damaged: {error}") from error
        changed = sorted(name for name in asked if before.get(name) != asked[name])
        if changed and not overwrite:
            raise DensescoreError(
                f"{self.folder}: holds scores made with another {', '.join(changed)}; "
                "choose another folder, or overwrite"
            )
        return not overwrite

    def keep(self, tile: Tile, scores: NDArray[np.float32]) -> None:
        """Write the scores ``[rows, cols, C]`` of a tile, then say so."""
        rows, cols = tile.rows.cells, tile.cols.cells
        with self.writing():
            self._arrays[str(tile.level)][rows.start : rows.stop, cols.start : cols.stop] = scores
            with self._journal.open("a") as journal:
                journal.write(f"{tile.number}\n")
        self.done.add(tile.number)

    def sum_of(self, level: int, classes: Sequence[int]) -> NDArray[np.float32]:
        """Scores of one class, or sums of several, at most 1, at every cell of a level: ``[rows, cols]``."""
        array = self._arrays[str(level)]
        first, last = min(classes), max(classes)
        own = np.array(classes) - first
        total = np.zeros(array.shape[:2], np.float32)
        for rows, cols in self._chunks(level):
            total[rows, cols] = np.asarray(array[rows, cols, first : last + 1])[..., own].sum(2)
        return np.minimum(total, 1)

    def _chunks(self, level: int) -> Iterator[tuple[slice, slice]]:
        """The parts of a level that its file holds together."""
        array = self._arrays[str(level)]
        height, width = array.chunks[:2]
        for row in range(0, array.shape[0], height):
            for col in range(0, array.shape[1], width):
                yield slice(row, row + height), slice(col, col + width)

    def blocks(self) -> list[tuple[int, slice, slice]]:
        """Level, rows and columns of each block of scores, as `block` takes them."""
        levels = sorted(map(int, self._arrays.array_keys()))
        return [(level, rows, cols) for level in levels for rows, cols in self._chunks(level)]

    def block(self, level: int, rows: slice, cols: slice) -> NDArray[np.float32]:
        """Scores of a block of cells: ``[≤ rows, ≤ cols, C]``."""
        return np.asarray(self._arrays[str(level)][rows, cols])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Failures to write, a full disk among them, are errors that name the folder; what is done is kept."""
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self.folder}: cannot be written: {error.strerror or error}; what is done is kept, and goes on when "
                "called again"
            ) from error
