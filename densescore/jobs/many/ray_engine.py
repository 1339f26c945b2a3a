"""Work spread over many machines: Ray Data hands parts to workers, each with one model.

A worker gets a part's number and paths, and returns the part as a small parquet file, which this process writes. So
workers must read the images, and write the arrays if there are any, at the same paths; nothing else is shared. Ray
holds parts back while workers are busy or this process is behind, and gives a lost worker's part to another.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.names import as_text, from_text, to_json
from densescore.jobs.many.rows import Outputs, Row, encode, make_row, schema
from densescore.jobs.many.table import Engine, Run, describe_scorer
from densescore.scoring.scorer import Context, DenseScorer
from densescore.scoring.stream import Scored, score_many

_DEATHS = 3
"""Maximum of workers that may die while scoring an image. Ray itself would retry forever."""


class PartMaker(Protocol):
    """Makes parts in a worker."""

    def rows(self, images: Sequence[str], start: int) -> Iterator[Row]:
        """A row of each image, with its path as `image`, and its `error` or None; `start`: number of the first."""

    def failed(self, image: str, index: int, error: str) -> Row:
        """The row of an image that workers died of."""

    def encode(self, rows: Sequence[Row]) -> bytes:
        """Rows as a parquet file."""


@dataclass(frozen=True)
class RayPool:
    """Workers of a Ray cluster; each makes its `DenseScorer` from `options`.

    `address` is as for ``ray.init``, by default a new cluster; `workers` are by default all that `cpus` allow.
    """

    options: Mapping[str, Any]
    address: str | None = None
    workers: int | None = None
    cpus: float = 1

    def __post_init__(self) -> None:
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise MissingPackageError("the Ray engine needs Ray: pip install 'densescore[ray]'") from error
        if self.cpus <= 0 or (self.workers is not None and self.workers < 1):
            raise DensescoreError(f"workers must be at least 1 and cpus above 0, got {self.workers} and {self.cpus}")

    def map(
        self, parts: Iterable[tuple[int, Sequence[str]]], make: Callable[[DenseScorer], PartMaker], *, ordered: bool
    ) -> Iterator[tuple[int, bytes, list[Row]]]:
        """Parts (first image's number, paths) → their numbers, tables, and images with errors; `ordered` or as made."""
        import ray
        import ray.data

        # Connect
        starts_ray = not ray.is_initialized()
        try:
            if starts_ray:
                os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
                ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # no cluster at the address, another version of Ray or Python, …
            raise DensescoreError(f"address {self.address!r}: no Ray cluster: {error}") from error

        # Map the parts; Ray Data replaces a lost worker, and gives its part to another
        try:
            items = [{"start": start, "images": [as_text(image) for image in images]} for start, images in parts]
            attempts = ray.remote(num_cpus=0)(_Attempts).remote()
            count = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus))
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars, context.execution_options.preserve_order = False, ordered
            size = max(1, min(count, len(items)))
            tables = ray.data.from_items(items, override_num_blocks=max(1, len(items))).map(
                _Worker,
                fn_constructor_args=(dict(self.options), make, os.getcwd(), attempts),
                compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
                num_cpus=self.cpus,
                num_gpus=1 if str(self.options.get("device", "")).startswith("cuda") else None,
            )
            for result in tables.iter_rows():
                yield result["start"], result["table"], json.loads(result["rows"])
        except ray.exceptions.RayError as error:
            raise DensescoreError(f"Ray: {_reason(error)}") from error
        finally:
            if starts_ray:
                ray.shutdown()


def ray_engine(pool: RayPool) -> Engine:
    """An engine that scores on a cluster's workers."""

    def engine(
        run: Run, outputs: Outputs, context: Context, callback: Callable[[Sequence[Row]], None]
    ) -> Iterator[tuple[range, bytes]]:
        make = partial(_TablePart, outputs, context, run.description, run.arrays)
        parts = ((part.start, [run.images[index] for index in part]) for part in run.pending())
        for start, table, rows in pool.map(parts, make, ordered=False):
            callback(rows)
            yield range(start, start + len(rows)), table

    return engine


class _TablePart:
    """Makes parts of the table of scores."""

    def __init__(
        self, outputs: Outputs, context: Context, description: dict[str, Any], arrays: Path, scorer: DenseScorer
    ) -> None:
        self.outputs, self.context, self.arrays, self.scorer = outputs, context, arrays, scorer
        for name, value in json.loads(to_json(describe_scorer(scorer, context))).items():
            if value != description[name]:
                raise DensescoreError(f"a worker has another {name}: {value}, not {description[name]}")
        self.columns = schema(outputs)

    def rows(self, images: Sequence[str], start: int) -> Iterator[Row]:
        for index, item in enumerate(score_many(images, self.scorer, context=self.context), start):
            yield make_row(index, images[index - start], item, self.outputs, self.arrays)

    def failed(self, image: str, index: int, error: str) -> Row:
        return make_row(index, image, Scored(image, None, error), self.outputs, self.arrays)

    def encode(self, rows: Sequence[Row]) -> bytes:
        return encode(rows, self.columns)


class _Attempts:
    """Counts, over all workers, the unfinished attempts at each piece of work."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]

    def end(self, name: str) -> None:
        del self._counts[name]


class _Worker:
    """A worker: one model, which makes parts."""

    def __init__(
        self, options: dict[str, Any], make: Callable[[DenseScorer], PartMaker], folder: str, attempts: Any
    ) -> None:
        os.chdir(folder)  # paths are relative to the command's working directory
        self.maker, self.attempts = make(DenseScorer(**options)), attempts

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        start, images = int(part["start"]), [from_text(str(image)) for image in part["images"]]
        # A retried part may have an image that kills its process: then images go one by one, each announced.
        if self._tell("begin", f"part {start}") > 1:
            rows = list(self._announced(images, start))
        else:
            rows = list(self.maker.rows(images, start))
        self._tell("end", f"part {start}")
        names = [{"image": row["image"], "error": row["error"]} for row in rows]
        return {"start": start, "table": self.maker.encode(rows), "rows": to_json(names)}

    def _announced(self, images: Sequence[str], start: int) -> Iterator[Row]:
        for index, image in enumerate(images, start):
            if self._tell("begin", f"image {index}") > _DEATHS:
                yield self.maker.failed(image, index, f"{image}: {_DEATHS} workers died while they scored it")
            else:
                yield from self.maker.rows([image], index)
                self._tell("end", f"image {index}")

    def _tell(self, what: str, name: str) -> Any:
        import ray

        return ray.get(getattr(self.attempts, what).remote(name))


def _reason(error: BaseException) -> str:
    """A worker's error without Ray's frames."""
    text = f"{error}\n{getattr(error, 'cause', '')}"
    ours = re.findall(r"DensescoreError: (.*)", text)
    return ours[-1] if ours else (str(error).strip() or type(error).__name__).splitlines()[-1]
