"""The table made on many machines: Ray Data hands parts to workers, each with one model.

A worker gets a part's number and paths, and returns the part's rows as a small parquet file, which this process writes.
So workers must read the images, and write the arrays if there are any, at the same paths; nothing else is shared. Ray
holds parts back while workers are busy or this process is behind, and gives a lost worker's part to another.
"""

import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.names import as_text, from_text, to_json
from densescore.jobs.many.rows import Outputs, Row, encode, make_row, schema
from densescore.jobs.many.table import Engine, Run, describe_scorer
from densescore.scoring.scorer import Context, DenseScorer
from densescore.scoring.stream import Scored, score_many

_DEATHS = 3
"""Maximum of workers that may die while scoring an image. Ray itself would retry forever."""


def ray_engine(
    options: Mapping[str, Any], *, address: str | None = None, workers: int | None = None, cpus: float = 1
) -> Engine:
    """An engine that scores on a Ray cluster's workers; each makes its `DenseScorer` from `options`.

    `address` is as for ``ray.init``, by default a new cluster; `workers` are by default all that `cpus` allow.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError("the Ray engine needs Ray: pip install 'densescore[ray]'") from error
    if cpus <= 0 or (workers is not None and workers < 1):
        raise DensescoreError(f"workers must be at least 1 and cpus above 0, got {workers} and {cpus}")

    def engine(
        run: Run, outputs: Outputs, context: Context, callback: Callable[[Sequence[Row]], None]
    ) -> Iterator[tuple[range, bytes]]:
        import pyarrow.parquet as pq

        # Connect
        starts_ray = not ray.is_initialized()
        try:
            if starts_ray:
                os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
                ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # no cluster at the address, another version of Ray or Python, …
            raise DensescoreError(f"address {address!r}: no Ray cluster: {error}") from error

        # Map the pending parts to rows; Ray Data replaces a lost worker, and gives its part to another
        try:
            parts = [{"start": part.start, "images": [as_text(run.images[i]) for i in part]} for part in run.pending()]
            attempts = ray.remote(num_cpus=0)(_Attempts).remote()
            count = workers or max(1, int(ray.cluster_resources().get("CPU", 1) / cpus))
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            ray.data.DataContext.get_current().enable_progress_bars = False
            size = max(1, min(count, len(parts)))
            arguments = (dict(options), outputs, context, run.description, run.arrays, os.getcwd(), attempts)
            tables = ray.data.from_items(parts, override_num_blocks=max(1, len(parts))).map(
                _Worker,
                fn_constructor_args=arguments,
                compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
                num_cpus=cpus,
                num_gpus=1 if str(options.get("device", "")).startswith("cuda") else None,
            )
            for result in tables.iter_rows():
                table = result["table"]
                rows = pq.read_table(io.BytesIO(table), columns=["image", "error"]).to_pylist()
                callback(rows)
                yield range(result["start"], result["start"] + len(rows)), table
        except ray.exceptions.RayError as error:
            raise DensescoreError(f"Ray: {_reason(error)}") from error
        finally:
            if starts_ray:
                ray.shutdown()

    return engine


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
    """A worker: one model, which scores parts."""

    def __init__(
        self,
        options: dict[str, Any],
        outputs: Outputs,
        context: Context,
        description: dict[str, Any],
        arrays: Path,
        folder: str,
        attempts: Any,
    ) -> None:
        os.chdir(folder)  # paths are relative to the command's working directory
        self.scorer = DenseScorer(**options)
        self.outputs, self.context, self.arrays, self.attempts = outputs, context, arrays, attempts
        for name, value in json.loads(to_json(describe_scorer(self.scorer, context))).items():
            if value != description[name]:
                raise DensescoreError(f"a worker has another {name}: {value}, not {description[name]}")
        self.columns = schema(outputs, len(self.scorer.labels))

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        start, images = int(part["start"]), [from_text(str(image)) for image in part["images"]]
        # A retried part may have an image that kills its process: then images go one by one, each announced.
        if self._tell("begin", f"part {start}") > 1:
            results = self._score_announced(images, start)
        else:
            results = score_many(images, self.scorer, context=self.context)
        rows = [
            make_row(index, image, item, self.outputs, self.arrays)
            for index, (image, item) in enumerate(zip(images, results, strict=True), start)
        ]
        self._tell("end", f"part {start}")
        return {"start": start, "table": encode(rows, self.columns)}

    def _score_announced(self, images: Sequence[str], start: int) -> Iterator[Scored]:
        for index, image in enumerate(images, start):
            if self._tell("begin", f"image {index}") > _DEATHS:
                yield Scored(image, None, f"{image}: {_DEATHS} workers died while they scored it")
            else:
                yield from score_many([image], self.scorer, context=self.context)
                self._tell("end", f"image {index}")

    def _tell(self, what: str, name: str) -> Any:
        import ray

        return ray.get(getattr(self.attempts, what).remote(name))


def _reason(error: BaseException) -> str:
    """A worker's error without Ray's frames."""
    text = f"{error}\n{getattr(error, 'cause', '')}"
    ours = re.findall(r"DensescoreError: (.*)", text)
    return ours[-1] if ours else (str(error).strip() or type(error).__name__).splitlines()[-1]
