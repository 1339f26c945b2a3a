"""Make the table on many machines: Ray Data hands parts to workers, each of which has one model.

A worker gets a part's number and paths, and returns the part's rows as a small parquet file, which this process writes.
So workers must be able to read the images (and to write the arrays, if any are kept) at the same paths; nothing else is
shared. Ray holds parts back while workers are busy or this process is behind, and gives a lost worker's to others.
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
from densescore.io.names import as_text, from_text
from densescore.jobs.many.rows import Kept, Row, encode, keep, schema
from densescore.jobs.many.run import Run
from densescore.jobs.many.table import Engine, describe_scorer
from densescore.scoring.fingerprint import Context
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import Scored, score_many

_DEATHS = 3
"""An image is given up after so many workers died while scoring it. Ray itself would try forever."""


def ray_engine(
    options: Mapping[str, Any], *, address: str | None = None, workers: int | None = None, cpus: float = 1
) -> Engine:
    """An engine that scores on the workers of a Ray cluster.

    Args:
        options: arguments of `DenseScorer`, with which each worker makes its own. Name ``runtime`` and ``device``:
            ``"auto"`` may choose differently where other packages are installed.
        address: of a cluster, as ``ray.init`` takes it; by default the one of ``RAY_ADDRESS``, or a new one here.
        workers: number of workers, each with a model; by default as many as the cluster's processors allow.
        cpus: processors (and threads) per worker.

    Raises:
        DensescoreError: Ray is not installed, or an argument is not valid. The engine raises it if the cluster cannot
            be reached, or if a worker's model differs from this process's.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError("the Ray engine needs Ray: pip install 'densescore[ray]'") from error
    if cpus <= 0 or (workers is not None and workers < 1):
        raise DensescoreError(f"workers must be at least 1 and cpus above 0, got {workers} and {cpus}")

    def engine(
        run: Run, kept: Kept, context: Context, callback: Callable[[Sequence[Row]], None]
    ) -> Iterator[tuple[range, bytes]]:
        import pyarrow.parquet as pq

        mine = not ray.is_initialized()
        try:
            if mine:
                ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # no cluster at the address, another version of Ray or Python, …
            raise DensescoreError(f"address {address!r}: no Ray cluster: {error}") from error
        try:
            parts = [{"start": part.start, "images": [as_text(run.images[i]) for i in part]} for part in run.pending()]
            attempts = ray.remote(num_cpus=0)(_Attempts).remote()
            count = workers or max(1, int(ray.cluster_resources().get("CPU", 1) / cpus))
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            ray.data.DataContext.get_current().enable_progress_bars = False
            tables = ray.data.from_items(parts, override_num_blocks=max(1, len(parts))).map(
                _Worker,
                fn_constructor_args=(dict(options), kept, context, run.description, run.arrays, os.getcwd(), attempts),
                compute=ray.data.ActorPoolStrategy(
                    size=max(1, min(count, len(parts))), max_tasks_in_flight_per_actor=2
                ),
                num_cpus=cpus,
                num_gpus=1 if str(options.get("device", "")).startswith("cuda") else None,
            )  # Ray Data replaces a lost worker, and gives its part to another
            for result in tables.iter_rows():
                table = result["table"]
                rows = pq.read_table(io.BytesIO(table), columns=["image", "error"]).to_pylist()
                callback(rows)
                yield range(result["start"], result["start"] + len(rows)), table
        except ray.exceptions.RayError as error:
            raise DensescoreError(f"Ray: {_reason(error)}") from error
        finally:
            if mine:
                ray.shutdown()

    return engine


class _Attempts:
    """Counts, over all workers, how often each piece of work was begun and not ended."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]

    def end(self, name: str) -> None:
        del self._counts[name]


class _Worker:
    """A worker: one model that scores the parts it is given."""

    def __init__(
        self,
        options: dict[str, Any],
        kept: Kept,
        context: Context,
        description: dict[str, Any],
        arrays: Path,
        folder: str,
        attempts: Any,
    ) -> None:
        os.chdir(folder)  # paths are relative to where the command was given
        self.scorer = DenseScorer(**options)
        self.kept, self.context, self.arrays, self.attempts = kept, context, arrays, attempts
        for name, value in json.loads(json.dumps(describe_scorer(self.scorer, context))).items():
            if value != description[name]:
                raise DensescoreError(f"a worker has another {name}: {value}, not {description[name]}")
        self.columns = schema(kept, len(self.scorer.labels))

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        start, images = int(part["start"]), [from_text(str(image)) for image in part["images"]]
        # A part that comes again may hold an image that kills its process: then one after another, each announced.
        again = self._tell("begin", f"part {start}") > 1
        score = self._score_announced if again else self._score
        rows = [
            keep(index, image, item, self.kept, self.arrays)
            for index, (image, item) in enumerate(zip(images, score(images, start), strict=True), start)
        ]
        self._tell("end", f"part {start}")
        return {"start": start, "table": encode(rows, self.columns)}

    def _score(self, images: Sequence[str], start: int) -> Iterator[Scored]:
        return score_many(images, self.scorer, context=self.context)

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
    """What a worker raised, without Ray's frames around it."""
    text = f"{error}\n{getattr(error, 'cause', '')}"
    ours = re.findall(r"DensescoreError: (.*)", text)
    return ours[-1] if ours else (str(error).strip() or type(error).__name__).splitlines()[-1]
