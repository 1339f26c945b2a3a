"""What a table of a billion images costs: measure the pieces on this machine, then multiply.

    python benchmarks/scaling.py --data DIR [--images 48] [--ray] [--out benchmarks/results/scaling.json]

Measured: a worker's seconds per image (one thread); this process's seconds per part, which one run cannot share out
(take rows in, write a part) and per row of the finished table (join the parts); bytes in and out per image. With --ray,
also the rates of one process, and of one and of two workers of a local cluster, in turn. Modelled: workers add up until
the process that keeps the parts is busy all the time.
"""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from common import parser, write_record

from densescore import DenseScorer, score_many
from densescore.jobs.many.ray_engine import RayPool, ray_engine
from densescore.jobs.many.rows import Outputs, encode, make_row, schema
from densescore.jobs.many.table import Engine, Run, find_inputs, score_table

PART = 64
BILLION = 10**9


def measure_worker(paths: Sequence[str], scorer: DenseScorer, outputs: Outputs) -> tuple[float, bytes]:
    """Seconds per image of one worker, its rows made and encoded, and one part as it goes over the network."""
    seconds = []
    rows = []
    stream = score_many(paths, scorer)
    for index, path in enumerate(paths):
        start = time.perf_counter()
        rows.append(make_row(index, path, next(stream), outputs, Path()))
        seconds.append(time.perf_counter() - start)
    part = [{**row, "index": index} for index, row in enumerate(islice(cycle(rows), PART))]
    return statistics.median(seconds), encode(part, schema(outputs))


def measure_keeping(part: bytes, scorer: DenseScorer, outputs: Outputs, parts: int = 60) -> tuple[float, float]:
    """Seconds per part of the one process that keeps them, and seconds per row of joining them at the end."""
    columns = schema(outputs)
    with tempfile.TemporaryDirectory() as folder:
        images = [f"{index}.jpg" for index in range(parts * PART)]
        with Run(Path(folder) / "results.parquet", images, {}, columns, part_size=PART) as run:
            each = []
            for pending in run.pending():
                start = time.perf_counter()
                pq.read_table(io.BytesIO(part), columns=["image", "error"]).to_pylist()
                run.commit(pending, part)
                each.append(time.perf_counter() - start)
            start = time.perf_counter()
            run.finish()
            joining = (time.perf_counter() - start) / len(images)
    return statistics.median(each), joining


def measure_engines(paths: Sequence[str], scorer: DenseScorer, rounds: int = 3) -> dict[str, list[float]]:
    """Images a second from the first part kept to the last one: starting workers is not counted."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    options = {"model": "lite0", "runtime": scorer.runtime, "device": scorer.device.type}
    engines: dict[str, Engine | None] = {
        "one process": None,
        "ray, 1 worker": ray_engine(RayPool(options, workers=1)),
        "ray, 2 workers": ray_engine(RayPool(options, workers=2)),
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            times: list[float] = []
            with tempfile.TemporaryDirectory() as folder:

                def callback(before: int, rows: Sequence[Any], times: list[float] = times) -> None:
                    times.extend([time.perf_counter()] * len(rows))

                score_table(paths, Path(folder) / "r.parquet", scorer, part_size=4, engine=engine, callback=callback)
            rates[name].append(round((len(times) - 4) / (times[-1] - times[3]), 3))
    ray.shutdown()
    return rates


def model(worker: float, keeping: float, joining: float, read: float, sent: float, cores: Sequence[int]) -> list[Any]:
    """One row per number of workers: images a second, days and core-hours for a billion images, bytes a second."""
    rows = []
    for count in cores:
        rate = min(count / worker, PART / keeping)
        rows.append(
            {
                "workers": count,
                "images_per_second": rate,
                "days": BILLION * (1 / rate + joining) / 86_400,
                "worker_hours": count * BILLION / rate / 3600,
                "read_mb_per_second": rate * read / 1e6,
                "sent_mb_per_second": rate * sent / 1e6,
                "keeper_busy": rate / PART * keeping,
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", required=True, help="folder of photographs")
    options.add_argument("--images", type=int, default=48)
    options.add_argument("--ray", action="store_true", help="also time Ray's workers on this machine")
    options.add_argument("--out", type=Path)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    paths = find_inputs([arguments.data])[: arguments.images]
    read = statistics.mean(Path(path).stat().st_size for path in paths)
    scorer = DenseScorer("lite0")
    list(score_many(paths[:4], scorer))
    result: dict[str, Any] = {
        "runtime": scorer.runtime,
        "images": len(paths),
        "read_bytes_per_image": round(read),
        "path_bytes_per_image": round(statistics.mean(len(path) for path in paths)),
    }
    for name, outputs in (("default", Outputs()), ("all scores", Outputs(all_scores=True))):
        worker, part = measure_worker(paths, scorer, outputs)
        keeping, joining = measure_keeping(part, scorer, outputs)
        result[name] = {
            "worker_seconds_per_image": worker,
            "row_bytes": round(len(part) / PART),
            "keeper_seconds_per_part": keeping,
            "joining_seconds_per_image": joining,
            "model": model(worker, keeping, joining, read, len(part) / PART, (1, 100, 1_000, 10_000)),
            "workers_that_one_keeper_serves": round(PART / keeping * worker),
        }
    if arguments.ray:
        result["images_per_second"] = measure_engines(paths, scorer)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_record(arguments.out, **result)


if __name__ == "__main__":
    main()
