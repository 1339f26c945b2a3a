"""Seconds an image at strides 32, 16 and 8, in turn.

python benchmarks/denser.py                     # prints a table, writes benchmarks/results/denser.json
"""

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
from common import RESULTS, noise_image, write_record
from cyclopts import Parameter, run

from densescore import DenseScorer

STRIDES = (32, 16, 8)


def main(
    *,
    models: Annotated[str, Parameter(help="Names, with commas between.")] = "lite0,alexnet",
    rounds: Annotated[int, Parameter(help="Images per stride, after one to warm up.")] = 5,
    out: Annotated[Path, Parameter(help="The JSON.")] = RESULTS / "denser.json",
) -> None:
    """Time one 500×375 image at each model's own scales; strides take turns, which is fair on a shared machine."""
    image = noise_image()
    rows = []
    for model in models.split(","):
        weights = "default" if model == "lite0" else None
        scorers = {stride: DenseScorer(model, weights=weights, stride=stride) for stride in STRIDES}
        timings: dict[int, list[dict[str, float]]] = {stride: [] for stride in STRIDES}
        patches = {}
        for _ in range(rounds + 1):
            for stride, scorer in scorers.items():
                scores = scorer.score(image)
                timings[stride].append(scores.timings)
                patches[stride] = len(scores.boxes)
        for stride in STRIDES:
            timed = timings[stride][1:]  # without the warm-up
            totals, base = ([sum(timing.values()) for timing in each[1:]] for each in (timings[stride], timings[32]))
            row: dict[str, Any] = {"model": model, "runtime": scorers[stride].runtime, "stride": stride}
            row |= {"patches": patches[stride], "seconds": statistics.median(totals)}
            for stage in ("trunk", "head"):
                row[f"{stage}_seconds"] = statistics.median(timing[stage] for timing in timed)
            row["times_stride_32"] = statistics.median(one / other for one, other in zip(totals, base, strict=True))
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_record(out, command="python benchmarks/denser.py", rounds=rounds, threads=torch.get_num_threads(), rows=rows)


if __name__ == "__main__":
    run(main)
