"""How the time of one image grows with its patches and its resolution, with peak memory.

    python benchmarks/growth.py                                   # lite0
    python benchmarks/growth.py --model alexnet --classes 21      # with random weights

Writes ``benchmarks/results/bench-MODEL-growth.json`` and its picture.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from common import RESULTS, parser, write_record
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densescore import DenseScorer
from densescore.bench.batches import Rows
from densescore.bench.case import Case
from densescore.bench.run import make_scorer, peak_memory, photograph
from densescore.geometry import PAPER_SCALES


def growth_curve(scorer: DenseScorer, max_patches: int) -> Rows:
    """Score more and more patches, up to `max_patches`; the better of two runs, or one from 50,000 patches on."""
    rows = []
    for way, scaled, (height, width) in _steps(scorer, max_patches):
        scaled.max_cells = 2 * max_patches
        pixels = photograph(height, width)
        patches, seconds = len(scaled.pyramid(height, width)), []
        for _ in range(2 if patches < 50_000 else 1):
            start = time.perf_counter()
            scaled.score(pixels)
            seconds.append(time.perf_counter() - start)
        row = {"way": way, "image": [height, width], "patches": patches, "seconds": min(seconds)}
        row |= {"microseconds_per_patch": 1e6 * min(seconds) / patches, "peak_memory_MB": peak_memory()}
        rows.append(row)
    return rows


def _steps(scorer: DenseScorer, max_patches: int) -> Iterator[tuple[str, DenseScorer, tuple[int, int]]]:
    """(way, scorer, image size), fewest patches first: peak memory only ever rises."""
    paper, patches_of_224 = scorer.with_scales(PAPER_SCALES), scorer.with_scales(patch_sizes=(224,))
    steps = []
    for way in ("more scales", "longer images", "larger images"):
        for n in (1, 2, 3, 5, 8, 12, 27, 60, 135, 400, 1200, 3600):
            scaled, (height, width) = {
                "more scales": (scorer.with_scales(tuple(np.geomspace(1, 4, n).tolist())), (375, 500)),
                "longer images": (paper, (375, 500 * n)),
                "larger images": (patches_of_224, (320 * n, 320 * n)),
            }[way]
            patches = len(scaled.pyramid(height, width, max_cells=10**9))
            if patches > max_patches or 3 * height * width > 2**30:
                break
            steps.append((patches, way, scaled, (height, width)))
    for _, way, scaled, size in sorted(steps, key=lambda step: step[0]):
        yield way, scaled, size


def resolution_curve(scorer: DenseScorer, megapixels: list[float]) -> Rows:
    """Stages of scoring a 4:3 JPEG of growing size at the scorer's scales; the median of three runs."""
    rows = []
    for size in sorted(megapixels):
        height = round((size * 1e6 * 3 / 4) ** 0.5)
        file = cv2.imencode(".jpg", photograph(height, round(height * 4 / 3)))[1].tobytes()
        runs = [scorer.score(file).timings for _ in range(3)]
        stages = {stage: float(np.median([run[stage] for run in runs])) for stage in runs[0]}
        rows.append({"megapixels": size, "file_MB": len(file) / 1e6, "stages": stages, "peak_memory_MB": peak_memory()})
    return rows


def plot(growth: Rows, resolution: Rows, path: Path) -> None:
    """Draw both curves side by side to a PNG file."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_growth(left, growth)
    _draw_resolution(right, resolution)
    for axes in (left, right):
        axes.legend()
    figure.savefig(path, dpi=120, format="png")


def _draw_growth(axes: Axes, rows: Rows) -> None:
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [(row["patches"], row["seconds"]) for row in rows if row["way"] == way]
        axes.loglog(*zip(*points, strict=True), "o-", label=way)
    last = max(rows, key=lambda row: row["patches"])
    ends = [min(row["patches"] for row in rows), last["patches"]]
    line = [last["seconds"] * patches / last["patches"] for patches in ends]
    axes.loglog(ends, line, "--", color="gray", label="in proportion")
    axes.set(xlabel="patches", ylabel="seconds per image")


def _draw_resolution(axes: Axes, rows: Rows) -> None:
    below = np.zeros(len(rows))
    for stage in rows[0]["stages"]:
        seconds = np.array([row["stages"][stage] for row in rows])
        axes.bar([f"{row['megapixels']:g}" for row in rows], seconds, bottom=below, label=stage)
        below += seconds
    axes.set(xlabel="megapixels of the JPEG", ylabel="seconds per image")


def main() -> None:
    """Measure one model."""
    program = parser(__doc__)
    program.add_argument("--model", default="lite0")
    program.add_argument("--classes", type=int, default=0, help="outputs of a random FCa and FCb instead of FC8")
    program.add_argument("--patches", type=int, default=30_000, help="largest number of patches")
    program.add_argument("--megapixels", type=float, nargs="+", default=[0.03, 0.3, 3, 12, 48])
    options = program.parse_args()
    weights = "default" if options.model.startswith("lite") else None
    scorer = make_scorer(Case(options.model, weights, options.classes))
    growth = growth_curve(scorer, options.patches)
    resolution = resolution_curve(scorer, options.megapixels)
    file = RESULTS / f"bench-{options.model}-growth.json"
    write_record(file, growth=growth, resolution=resolution)
    plot(growth, resolution, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
