"""Images → one parquet table, made part by part, so that a killed run resumes.

Beside ``results.parquet`` a run keeps the folder ``results.parquet.parts``: ``_run.json`` describes the run, and each
``part-<first image>.parquet`` holds the rows of a fixed range of images and appears whole or not at all; its digest is
in ``_part-<first image>.sha256``. At the end the parts become ``results.parquet``, and the folder is deleted. So at any
moment an image is either in exactly one part or pending, and the folder is itself a table that pandas, pyarrow and
DuckDB read.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.files import (
    ARRAYS,
    ZARR,
    atomic_write,
    check_replaceable,
    claim,
    clear_scratch,
    exclusive,
    read_mark,
    remove_folder,
)
from densescore.io.find import each_once, exists, list_images, matching, read_list
from densescore.io.names import as_text, refuse_url, to_json
from densescore.io.video import frame_names, is_video, split_frame_name
from densescore.jobs.many.rows import Outputs, Row, encode, make_row, open_arrays, schema
from densescore.scoring.scorer import Context, DenseScorer
from densescore.scoring.stream import score_many

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_ROWS = 16_384  # of a row group of the finished table
_PARTS = "parts of a table"
_PARTS_HOLD = (r"_run\.json", r"_?part-\d+\.(parquet|sha256)", rf"_arrays\.zarr(/{ZARR})?")


def find_inputs(inputs: Sequence[str | os.PathLike[str]], fps: float | None = None) -> list[str]:
    """Image files and frames of videos (``clip.mp4#t=2.5``), in order, each once.

    Of folders, images, videos, patterns, lists (``.txt``) and ``-``; folders give their videos only if `fps` is set.
    """
    paths = each_once(path for entry in inputs for path in _expand(os.fspath(entry), videos=fps is not None))
    return [name for path in paths for name in image_names(path, fps)]


def image_names(path: str | os.PathLike[str], fps: float | None = None) -> Iterable[str]:
    """Frames of a video, by default one a second; of anything else the path itself."""
    return frame_names(path, 1.0 if fps is None else fps) if is_video(path) else [os.fspath(path)]


def input_files(words: Sequence[str], images: Iterable[str]) -> list[str]:
    """Files that a run reads: what was named (lists, folders, tables), and its images; of frames, their videos."""
    return list(dict.fromkeys([*words, *(split_frame_name(image)[0] for image in images)]))


def _expand(text: str, *, videos: bool) -> Iterable[str]:
    if text == "-":
        return read_list(sys.stdin.buffer.read(), "standard input")
    refuse_url(text)
    path, is_there = Path(text), exists(text)
    if path.suffix.lower() == ".txt" and is_there and path.is_file():
        try:
            return read_list(path.read_bytes(), text)
        except OSError as error:
            raise DensescoreError(f"{text}: cannot be read: {error.strerror}") from error
    if not is_there and any(character in text for character in "*?["):
        files = matching(text)
        if not files:
            raise DensescoreError(f"{text}: no file matches the pattern")
        return files
    return map(str, list_images([text], videos=videos))


class Run:
    """A run's state on disk. Entered, it holds a lock, and refuses the results or parts of another run.

    The rows follow from `description` (values by option); `inputs` and `images` are never replaced.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        images: Sequence[str],
        description: Mapping[str, Any],
        columns: "pa.Schema",
        part_size: int = 64,
        overwrite: bool = False,
        *,
        has_arrays: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.out, self.images, self.columns = Path(out), images, columns
        self.part_size, self.overwrite, self.has_arrays = part_size, overwrite, has_arrays
        if self.out.suffix != ".parquet":
            raise DensescoreError(f"--output: the table's file ends in .parquet, got {self.out}")
        if part_size < 1:
            raise DensescoreError(f"part_size must be at least 1, got {part_size}")
        values = {**description, "part-size": part_size, "images": _describe_images(images)}
        self.description: dict[str, Any] = json.loads(to_json(values))
        self.complete = False  # whether `out` is this run's table
        self.parts = parts_of(self.out)
        self.arrays = self.parts / "_arrays.zarr"  # becomes results.zarr
        self._inputs = input_files((), images) + [os.fspath(item) for item in inputs]
        self._lock = ExitStack()

    def __enter__(self) -> "Run":
        if self.overwrite:
            check_replaceable(self.out, overwrite=True, inputs=self._inputs)
        elif os.path.lexists(self.out):
            stored = read_description(self.out) or {}
            self.complete = stored == self.description
            if not self.complete:
                raise DensescoreError(
                    f"{self.out}: exists already, {_difference(stored, self.description)}; "
                    "choose another --output, or --overwrite"
                )
        with ExitStack() as lock:
            lock.enter_context(exclusive(self.out))
            self._clear()
            if not self.complete:
                self._resume()
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def pending(self) -> Iterator[range]:
        """Ranges of images without rows, in order."""
        if self.complete:
            return
        for start in range(0, len(self.images), self.part_size):
            part = range(start, min(start + self.part_size, len(self.images)))
            if not self._is_whole(part):
                yield part

    def commit(self, part: range, table: bytes) -> None:
        """Store the rows of a part, encoded by `encode`, and their digest; they are not made again."""
        _write(self._path(part.start), table)
        _write(self._digest(part.start), hashlib.sha256(table).hexdigest().encode())

    def finish(self) -> None:
        """Merge the parts into one table, move the arrays beside it, and delete the parts."""
        missing = next(self.pending(), None)
        if missing is not None:
            raise DensescoreError(f"{self.parts}: images {missing.start} to {missing.stop - 1} are missing")
        with atomic_write(self.out, overwrite=self.overwrite) as temporary:
            self._merge(temporary)
            if self.arrays.exists():
                self.arrays.rename(self.out.with_suffix(".zarr"))
        self.complete = True
        self._clear()

    def _merge(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self.columns.with_metadata({"densescore": to_json(self.description)})
        with path.open("wb") as file:
            with pq.ParquetWriter(file, columns) as writer:
                group: list[pa.Table] = []
                for start in range(0, len(self.images), self.part_size):
                    group.append(pq.ParquetFile(self._path(start)).read())
                    if sum(map(len, group)) >= _GROUP_ROWS or start + self.part_size >= len(self.images):
                        writer.write_table(pa.concat_tables(group))
                        group.clear()
            file.flush()
            os.fsync(file.fileno())

    def _resume(self) -> None:
        """Continue with the parts on disk, or begin with none."""
        claim(self.parts, _PARTS, _PARTS_HOLD)
        stored = read_description(self.parts)
        if stored is None and any(self.parts.glob("part-*.parquet")):
            raise DensescoreError(f"{self.parts}: holds parts, but not the _run.json that describes them")
        if stored is not None and stored != self.description:
            if not self.overwrite:
                raise DensescoreError(
                    f"{self.parts}: belongs to a run that was not finished, {_difference(stored, self.description)}; "
                    "finish it with its own options, choose another --output, or --overwrite"
                )
            self._discard(self.parts, _PARTS)
            claim(self.parts, _PARTS, _PARTS_HOLD)
            stored = None

        # Arrays in their final place: of this run, killed within `finish`, or of an earlier one
        arrays = self.out.with_suffix(".zarr")
        is_ours = (mark := read_mark(arrays)) is not None and mark.kind == ARRAYS
        if is_ours and stored is not None:
            arrays.rename(self.arrays)
        elif is_ours or (self.has_arrays and os.path.lexists(arrays)):
            if not self.overwrite:
                raise DensescoreError(f"{arrays}: exists already; choose another --output, or --overwrite")
            self._discard(arrays, ARRAYS)
        if stored is None:
            _write(self.parts / "_run.json", to_json(self.description, indent=1).encode())

    def _clear(self) -> None:
        """Delete temporary files of killed runs, and the parts of a complete table."""
        clear_scratch(self.out.parent)
        if self.complete:
            remove_folder(self.parts, _PARTS)

    def _discard(self, folder: Path, kind: str) -> None:
        check_replaceable(folder, overwrite=True, folder=kind, inputs=self._inputs)
        remove_folder(folder, kind)

    def _path(self, start: int) -> Path:
        return self.parts / f"part-{start:012d}.parquet"

    def _digest(self, start: int) -> Path:
        return self.parts / f"_part-{start:012d}.sha256"  # readers of a folder of tables ignore names in "_"

    def _is_whole(self, part: range) -> bool:
        """Whether a part has its rows, as they were written."""
        try:
            digest = hashlib.sha256(self._path(part.start).read_bytes()).hexdigest()
            return self._digest(part.start).read_bytes() == digest.encode()
        except OSError:
            return False


Engine: TypeAlias = Callable[[Run, Outputs, Context, Callable[[Sequence[Row]], None]], Iterator[tuple[range, bytes]]]
"""Makes a run's pending parts, in any order, encoded by `encode`, and reports rows (or their names and errors)."""


def score_table(
    images: Sequence[str],
    out: str | os.PathLike[str],
    scorer: DenseScorer,
    outputs: Outputs | None = None,
    *,
    context: Context | None = None,
    part_size: int = 64,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    engine: Engine | None = None,
    callback: Callable[[int, Sequence[Row]], None] = lambda before, rows: None,
) -> int:
    """Score images into a table with one row per image; called again after a kill, it resumes. Returns the error count.

    `callback` gets the number of rows that an earlier run left, and new rows. Errors of images go to their rows.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingPackageError(f"a table of scores needs {error.name}: pip install 'densescore[many]'") from error
    outputs = (outputs or Outputs()).checked(scorer.labels)
    engine, context = engine or local_engine(scorer), context or scorer.context
    columns = schema(outputs)
    # Column names too: parts of another version of densescore may have others.
    description = {**describe_scorer(scorer, context), **_by_option(vars(outputs)), "columns": columns.names}
    state = Run(out, images, description, columns, part_size, overwrite, has_arrays=outputs.arrays, inputs=inputs)
    with state as run:
        callback(len(images) - sum(map(len, run.pending())), [])
        if not run.complete:
            if outputs.arrays:
                open_arrays(run.arrays, run.description)
            for part, table in engine(run, outputs, context, lambda rows: callback(0, rows)):
                run.commit(part, table)
            run.finish()
    return len(images) - pq.ParquetFile(out).read(columns=["error"])["error"].null_count


def local_engine(scorer: DenseScorer, decoders: int | None = None) -> Engine:
    """An engine that scores in this process, while threads decode the next images."""

    def engine(
        run: Run, outputs: Outputs, context: Context, callback: Callable[[Sequence[Row]], None]
    ) -> Iterator[tuple[range, bytes]]:
        parts = list(run.pending())
        paths = (run.images[index] for part in parts for index in part)
        stream = score_many(paths, scorer, context=context, decoders=decoders, ahead=(decoders or 1) + 3)
        for part in parts:
            rows = []
            for index in part:
                rows.append(make_row(index, run.images[index], next(stream), outputs, run.arrays))
                callback(rows[-1:])
            yield part, encode(rows, run.columns)

    return engine


def describe_scorer(scorer: DenseScorer, context: Context) -> dict[str, Any]:
    """Everything that the scores follow from, by the names of the command's options."""
    return _by_option(scorer.fingerprint(context=context))


def read_description(out: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Description of the run that made a finished table or a folder of parts; None if there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = Path(out)
    try:
        if out.is_dir():
            text: str | bytes = (out / "_run.json").read_bytes()
        else:
            text = (pq.read_schema(out).metadata or {})[b"densescore"]
        description: dict[str, Any] = json.loads(text)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return description


def parts_of(out: Path) -> Path:
    """The folder of a table's parts."""
    return out.with_name(f"{out.name}.parts")


def _by_option(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in values.items()}


def _describe_images(images: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(map(as_text, images)).encode()).hexdigest()
    return f"{len(images)} paths ({digest[:16]})"


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first option in which two descriptions differ, in words."""
    if not then:
        return "not by a run of densescore"
    name = next(name for name in [*now, *then] if then.get(name) != now.get(name))
    old, new = (str(values.get(name)) for values in (then, now))
    return f"with another {name}" + (f": {old} then, {new} now" if max(len(old), len(new)) <= 100 else "")


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path, overwrite=True, sweep=False) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
