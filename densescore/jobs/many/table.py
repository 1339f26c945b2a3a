"""Images → one table of results, on this machine or on many."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

from densescore.errors import DensescoreError
from densescore.jobs.many.rows import Kept, Row, encode, keep, open_arrays, schema
from densescore.jobs.many.run import Run
from densescore.scoring.scorer import Context, DenseScorer
from densescore.scoring.stream import score_many

Engine: TypeAlias = Callable[[Run, Kept, Context, Callable[[Sequence[Row]], None]], Iterator[tuple[range, bytes]]]
"""Makes a run's pending parts, in any order, as `encode` gives them, and reports rows (or their names and errors)."""


def score_table(
    images: Sequence[str],
    out: str | os.PathLike[str],
    scorer: DenseScorer,
    kept: Kept | None = None,
    *,
    context: Context = "image",
    part_size: int = 64,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    engine: Engine | None = None,
    callback: Callable[[int, Sequence[Row]], None] = lambda found, rows: None,
) -> int:
    """Score images into one parquet table. Run again after a kill, it goes on; run again when done, it does nothing.

    Args:
        images: paths; see `densescore.jobs.many.inputs.find_inputs`.
        out: the table, ``….parquet``; one row per image, in order, its schema's metadata says how it was made.
        scorer: the network.
        kept: what to keep of each image.
        context: as for `DenseScorer.score`.
        part_size: images per part: the most work that a kill can cost.
        overwrite: replace a finished table.
        inputs: other files of the run, such as the model's; neither they nor the images are ever replaced.
        engine: who does the work; this process by default.
        callback: is told how many rows an earlier run left, and the rows that are new, as they come.

    Raises:
        DensescoreError: see `Run`; an argument does not fit; the disk is full. Never because of an image: that is in
            the ``error`` column.

    Returns:
        How many images of the table have an error.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DensescoreError(f"a table of scores needs {error.name}: pip install 'densescore[many]'") from error
    kept = kept or Kept()
    kept.check(scorer.labels)
    engine = engine or local_engine(scorer)
    columns = schema(kept, len(scorer.labels))
    description = {**describe_scorer(scorer, context), **_describe_kept(kept)}
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


def local_engine(scorer: DenseScorer, decoders: int = 1) -> Engine:
    """One scorer in this process, and threads that decode ahead of it."""

    def engine(
        run: Run, kept: Kept, context: Context, callback: Callable[[Sequence[Row]], None]
    ) -> Iterator[tuple[range, bytes]]:
        parts = list(run.pending())
        paths = (run.images[index] for part in parts for index in part)
        stream = score_many(paths, scorer, context=context, decoders=decoders, ahead=decoders + 3)
        for part in parts:
            rows = []
            for index in part:
                rows.append(keep(index, run.images[index], next(stream), kept, run.arrays))
                callback(rows[-1:])
            yield part, encode(rows, run.columns)

    return engine


def describe_scorer(scorer: DenseScorer, context: Context) -> dict[str, Any]:
    """All of a scorer that its scores follow from, by the names of the options."""
    return {
        "densescore": version("densescore"),
        "model": scorer.name,
        "weights": f"{scorer.weights_digest[:16]} {scorer.classifier_digest[:16]}",
        "labels": scorer.labels,
        "mean": scorer.mean,
        "std": scorer.std,
        "scales": scorer.scales if scorer.patch_sizes is None else None,
        "patch-sizes": scorer.patch_sizes,
        "patch": scorer.network.patch,
        "stride": scorer.network.stride,
        "k": scorer.k,
        "max-cells": scorer.max_cells,
        "device": scorer.device.type,
        "dtype": str(scorer.dtype),
        "runtime": scorer.runtime,
        "context": context,
    }


def _describe_kept(kept: Kept) -> Mapping[str, Any]:
    return {name.replace("_", "-"): getattr(kept, name) for name in Kept.__dataclass_fields__}
