"""Images → one table of results, on this machine or on many."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from densescore.errors import MissingPackageError
from densescore.jobs.many.rows import Kept, Row, encode, keep, open_arrays, schema
from densescore.jobs.many.run import Run
from densescore.scoring.fingerprint import Context
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import score_many

Engine: TypeAlias = Callable[[Run, Kept, Context, Callable[[Sequence[Row]], None]], Iterator[tuple[range, bytes]]]
"""Makes a run's pending parts, in any order, as `encode` gives them, and reports rows (or their names and errors)."""


def score_table(
    images: Sequence[str],
    out: str | os.PathLike[str],
    scorer: DenseScorer,
    kept: Kept | None = None,
    *,
    context: Context | None = None,
    part_size: int = 64,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    engine: Engine | None = None,
    callback: Callable[[int, Sequence[Row]], None] = lambda found, rows: None,
) -> int:
    """Score images into one parquet table. Called again after a kill, it goes on; when the table is done, it returns.

    Args:
        images: paths; see `densescore.jobs.many.inputs.find_inputs`.
        out: the table, ``….parquet``: one row per image, in order. Its schema's metadata says how it was made.
        scorer: scores the images.
        kept: what to keep of each image.
        context: as for `DenseScorer.score`.
        part_size: images per part. A kill costs at most the work on one part.
        overwrite: replace a finished table.
        engine: does the work; by default `local_engine`, in this process.
        callback: called with the number of rows that an earlier run left, and with new rows as they come.
        inputs: other files of the run, such as the model's; neither they nor the images are ever replaced.

    Raises:
        DensescoreError: see `Run`; an argument does not fit; the disk is full. Never because of an image: that is in
            the ``error`` column.

    Returns:
        How many images of the table have an error.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingPackageError(f"a table of scores needs {error.name}: pip install 'densescore[many]'") from error
    kept = (kept or Kept()).checked(scorer.labels)
    engine, context = engine or local_engine(scorer), context or scorer.context
    columns = schema(kept, len(scorer.labels))
    # The columns, too: parts that another version of densescore wrote may have others.
    description = {**describe_scorer(scorer, context), **_by_option(vars(kept)), "columns": columns.names}
    with Run(
        out,
        images,
        description,
        columns,
        part_size=part_size,
        overwrite=overwrite,
        keeps_arrays=kept.arrays,
        inputs=inputs,
    ) as run:
        callback(len(images) - sum(map(len, run.pending())), [])
        if not run.complete:
            if kept.arrays:
                open_arrays(run.arrays, run.description)
            for part, table in engine(run, kept, context, lambda rows: callback(0, rows)):
                run.commit(part, table)
            run.finish()
    return len(images) - pq.ParquetFile(out).read(columns=["error"])["error"].null_count


def local_engine(scorer: DenseScorer, decoders: int | None = None) -> Engine:
    """An engine that scores in this process, while threads decode the next images."""

    def engine(
        run: Run, kept: Kept, context: Context, callback: Callable[[Sequence[Row]], None]
    ) -> Iterator[tuple[range, bytes]]:
        parts = list(run.pending())
        paths = (run.images[index] for part in parts for index in part)
        stream = score_many(paths, scorer, context=context, decoders=decoders, ahead=(decoders or 1) + 3)
        for part in parts:
            rows = []
            for index in part:
                rows.append(keep(index, run.images[index], next(stream), kept, run.arrays))
                callback(rows[-1:])
            yield part, encode(rows, run.columns)

    return engine


def describe_scorer(scorer: DenseScorer, context: Context) -> dict[str, Any]:
    """What the scores follow from, by the names of the command's options."""
    return _by_option(scorer.fingerprint(context=context))


def _by_option(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in values.items()}
