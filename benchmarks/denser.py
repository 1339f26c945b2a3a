"""What cells closer than the network's stride cost: seconds an image at strides 32, 16 and 8, in turn.

python benchmarks/denser.py                     # prints a table, writes benchmarks/results/denser.json
"""

import json
import statistics
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from densescore import DenseScorer
from densescore.bench.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
STRIDES = (32, 16, 8)


def main(
    models: Annotated[str, typer.Option(help="Names, with commas between.")] = "lite0,alexnet",
    rounds: Annotated[int, typer.Option(help="Images per stride, after one to warm up.")] = 5,
    out: Annotated[Path, typer.Option(help="The JSON.")] = RESULTS / "denser.json",
) -> None:
    """Time one 500×375 image at each model's own scales; strides take turns, so that a shared machine is fair."""
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
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
            stages = {
                stage: statistics.median(timing[stage] for timing in timings[stride][1:]) for stage in ("trunk", "head")
            }
            totals = [sum(timing.values()) for timing in timings[stride][1:]]
            base = [sum(timing.values()) for timing in timings[STRIDES[0]][1:]]
            row = {
                "model": model,
                "runtime": scorers[stride].runtime,
                "stride": stride,
                "patches": patches[stride],
                "seconds": statistics.median(totals),
                **{f"{stage}_seconds": seconds for stage, seconds in stages.items()},
                "times_stride_32": statistics.median(one / other for one, other in zip(totals, base, strict=True)),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    record = {"command": "python benchmarks/denser.py", "rounds": rounds, "threads": torch.get_num_threads()}
    out.write_text(json.dumps({**record, "machine": describe_machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
