"""One scorer in 1, 2 and 4 threads: images a second, in turn.

python benchmarks/threads.py                    # prints a table, writes benchmarks/results/threads.json
"""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
from common import RESULTS, noise_image, write_record
from cyclopts import Parameter, run

from densescore import DenseScorer

THREADS = (1, 2, 4)


def main(
    *,
    images: Annotated[int, Parameter(help="Per thread count and round.")] = 8,
    rounds: Annotated[int, Parameter(help="After one to warm up; thread counts take turns.")] = 5,
    out: Annotated[Path, Parameter(help="The JSON.")] = RESULTS / "threads.json",
) -> None:
    """Time lite0 on 500×375 images at two scales; torch computes with one thread per caller."""
    torch.set_num_threads(1)
    image = noise_image()
    rows = []
    for runtime in ("torch", "openvino") if find_spec("openvino") else ("torch",):
        scorer = DenseScorer("lite0", scales=(1, 1.3), runtime=runtime)
        seconds: dict[int, list[float]] = {threads: [] for threads in THREADS}
        for _ in range(rounds + 1):
            for threads in THREADS:
                start = time.perf_counter()
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(scorer.score, [image] * images))
                seconds[threads].append(time.perf_counter() - start)
        for threads in THREADS:
            speedups = [alone / several for alone, several in zip(seconds[1][1:], seconds[threads][1:], strict=True)]
            speed = images / statistics.median(seconds[threads][1:])
            row = {"runtime": runtime, "threads": threads, "images_per_second": speed}
            row |= {"times_one_thread": statistics.median(speedups), "lowest": min(speedups), "highest": max(speedups)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_record(out, command="python benchmarks/threads.py", images=images, rounds=rounds, rows=rows)


if __name__ == "__main__":
    run(main)
