"""A table that is made part by part, so that a killed run goes on where it was.

Beside ``results.parquet`` a run keeps the folder ``results.parquet.parts``: ``_run.json`` says what is being made, each
``part-<first image>.parquet`` holds the rows of a fixed range of images and appears whole or not at all. When all are
there, they become one ``results.parquet``, and the folder goes. So at any moment an image is either in exactly one part
or still to do, and the folder is itself a table that pandas, pyarrow and DuckDB read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densescore.errors import DensescoreError, WriteError
from densescore.io.files import atomic_write, check_replaceable, clear_scratch, remove_folder
from densescore.io.locks import exclusive
from densescore.io.marks import ARRAYS, ZARR, claim, read_mark
from densescore.io.names import as_text
from densescore.io.video import split_frame_name

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_ROWS = 16_384  # of a row group of the finished table
_PARTS = "parts of a table"
_PARTS_HOLD = (r"_run\.json", r"part-\d+\.parquet", rf"_arrays\.zarr(/{ZARR})?")


class Run:
    """The state of one run on disk; a context manager that holds it against a second run at the same time.

    Args:
        out: the finished table, ``….parquet``; arrays go to a folder of the same name with ``.zarr``.
        images: paths, in order.
        description: what else the rows follow from, as JSON values by the name of the option; a run goes on only where
            all of it is the same.
        columns: of the table.
        part_size: images per part: the most that a kill can cost.
        overwrite: replace a finished table (its arrays go at once), and drop the parts of another run.
        keeps_arrays: the run will have arrays; otherwise a zarr folder beside the table may be somebody else's.
        inputs: other files of the run, beside `images`, that it must not replace.

    Attributes:
        complete: `out` is what this run would make.
        arrays: the zarr folder to write to.

    Raises:
        DensescoreError: on entering, where another run's results or parts are in the place, or files that densescore
            did not make; another run is at work; or the place cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        images: Sequence[str],
        description: Mapping[str, Any],
        columns: "pa.Schema",
        *,
        part_size: int = 64,
        overwrite: bool = False,
        keeps_arrays: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.out, self.images, self.columns, self.overwrite = Path(out), images, columns, overwrite
        if self.out.suffix != ".parquet":
            raise DensescoreError(f"--out: the table's file ends in .parquet, got {self.out}")
        if part_size < 1:
            raise DensescoreError(f"part_size must be at least 1, got {part_size}")
        self.part_size = part_size
        given = {**description, "part-size": part_size, "images": _describe_images(images)}
        self.description: dict[str, Any] = json.loads(json.dumps(given))
        self.complete = False
        self.parts = parts_of(self.out)
        self.arrays = self.parts / "_arrays.zarr"
        self._final_arrays = self.out.with_suffix(".zarr")
        files = dict.fromkeys(split_frame_name(image)[0] for image in images)  # a video's frames are one file
        self._keeps_arrays, self._inputs = keeps_arrays, (*files, *inputs)
        self._lock = ExitStack()

    def __enter__(self) -> "Run":
        if self.overwrite:
            check_replaceable(self.out, overwrite=True, inputs=self._inputs)
        elif os.path.lexists(self.out):
            found = read_description(self.out) or {}
            self.complete = found == self.description
            if not self.complete:
                raise DensescoreError(
                    f"{self.out}: exists already, {_difference(found, self.description)}; "
                    "choose another --out, or --overwrite"
                )
        with ExitStack() as lock:
            lock.enter_context(exclusive(self.out))
            self._sweep()
            if not self.complete:
                self._take_up()
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def pending(self) -> Iterator[range]:
        """Ranges of images whose rows are not there, in order."""
        if self.complete:
            return
        for start in range(0, len(self.images), self.part_size):
            part = range(start, min(start + self.part_size, len(self.images)))
            if _rows_in(self._path(part.start)) != len(part):
                yield part

    def commit(self, part: range, table: bytes) -> None:
        """Keep the rows of a part, as `encode` gives them; whatever happens later, they are not made again.

        Raises:
            DensescoreError: the disk is full, or the place cannot be written.
        """
        _write(self._path(part.start), table)

    def finish(self) -> None:
        """Make one table of the parts, put the arrays in their place, and clear the parts away.

        Raises:
            DensescoreError: a part is missing, the disk is full, or the place cannot be written.
        """
        missing = next(self.pending(), None)
        if missing is not None:
            raise DensescoreError(f"{self.parts}: images {missing.start} to {missing.stop - 1} are missing")
        try:
            with atomic_write(self.out, overwrite=self.overwrite) as temporary:
                self._merge(temporary)
                if self.arrays.exists():
                    self.arrays.rename(self._final_arrays)
        except OSError as error:
            raise WriteError(f"{self.out}: cannot be written: {error.strerror or error}") from error
        self.complete = True
        self._sweep()

    def _merge(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self.columns.with_metadata({"densescore": json.dumps(self.description)})
        with path.open("wb") as file:
            with pq.ParquetWriter(file, columns) as writer:
                waiting: list[pa.Table] = []
                for start in range(0, len(self.images), self.part_size):
                    waiting.append(pq.ParquetFile(self._path(start)).read())
                    if sum(map(len, waiting)) >= _GROUP_ROWS:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting.clear()
                if waiting:
                    writer.write_table(pa.concat_tables(waiting))
            file.flush()
            os.fsync(file.fileno())

    def _take_up(self) -> None:
        """Go on with the parts that are there, or start again."""
        claim(self.parts, _PARTS, _PARTS_HOLD)
        found = read_description(self.parts)
        if found is None and any(self.parts.glob("part-*.parquet")):
            raise DensescoreError(f"{self.parts}: holds parts, but not the _run.json that says of what")
        if found is not None and found != self.description:
            if not self.overwrite:
                raise DensescoreError(
                    f"{self.parts}: belongs to a run that was not finished, {_difference(found, self.description)}; "
                    "finish it with its own options, choose another --out, or --overwrite"
                )
            self._discard(self.parts, _PARTS)
            claim(self.parts, _PARTS, _PARTS_HOLD)
            found = None
        final = self._final_arrays
        ours = (mark := read_mark(final)) is not None and mark.kind == ARRAYS
        if ours and found is not None:  # killed in the last step of all
            final.rename(self.arrays)
        elif ours or (self._keeps_arrays and os.path.lexists(final)):
            if not self.overwrite:
                raise DensescoreError(f"{final}: exists already; choose another --out, or --overwrite")
            self._discard(final, ARRAYS)
        if found is None:
            _write(self.parts / "_run.json", json.dumps(self.description, indent=1).encode())

    def _sweep(self) -> None:
        """Clear away what interrupted writes left, and, once the table is complete, its parts."""
        clear_scratch(self.out.parent)
        if self.complete:
            remove_folder(self.parts, _PARTS)
        elif self.parts.is_dir():
            clear_scratch(self.parts)

    def _discard(self, folder: Path, kind: str) -> None:
        check_replaceable(folder, overwrite=True, folder=kind, inputs=self._inputs)
        remove_folder(folder, kind)

    def _path(self, start: int) -> Path:
        return self.parts / f"part-{start:012d}.parquet"


def read_description(out: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a finished table, or a folder of parts, was made with; None where it does not say.

    Args:
        out: ``results.parquet``, or ``results.parquet.parts``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = Path(out)
    try:
        if out.is_dir():
            text: str | bytes = (out / "_run.json").read_bytes()
        else:
            text = (pq.read_schema(out).metadata or {})[b"densescore"]
        found: dict[str, Any] = json.loads(text)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return found


def parts_of(out: Path) -> Path:
    """The folder in which the parts of a table wait."""
    return out.with_name(f"{out.name}.parts")


def _describe_images(images: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(map(as_text, images)).encode()).hexdigest()
    return f"{len(images)} paths ({digest[:16]})"


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first option in which two descriptions differ, in words."""
    if not then:
        return "not by a run of densescore"
    name = next(name for name in [*now, *then] if then.get(name) != now.get(name))
    old, new = (str(values.get(name)) for values in (then, now))
    if max(len(old), len(new)) > 100:
        return f"with another {name}"
    return f"with another {name}: {old} then, {new} now"


def _rows_in(path: Path) -> int:
    """Rows of a part; 0 where it is absent or damaged, which is as good as absent."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: int = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException):
        return 0
    return rows


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_write(path, overwrite=True, sweep=False) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error
