"""How time grows with patches, resolution and batch size: the curves of ``densescore-bench``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densescore.bench.run import peak_memory, photograph, synchronize
from densescore.geometry import PAPER_SCALES
from densescore.scoring.scorer import DenseScorer

PHOTO_SIZES = ((375, 500), (333, 500), (500, 375), (375, 500), (480, 640), (500, 333), (375, 500), (400, 500))
"""Height and width of photographs in a batch of mixed sizes."""

Rows = list[dict[str, Any]]


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


def batch_curve(scorer: DenseScorer, max_batch: int, rounds: int) -> Rows:
    """Images per second at batch sizes 1, 2, 4, … `max_batch`: photographs of mixed sizes, batch sizes in turn."""
    images = [photograph(*PHOTO_SIZES[index % len(PHOTO_SIZES)]) for index in range(max_batch)]
    sizes = [*(2**power for power in range(max_batch.bit_length()) if 2**power < max_batch), max_batch]
    runs: list[list[float]] = [[] for _ in sizes]
    for _ in range(rounds + 1):
        for size, seconds in zip(sizes, runs, strict=True):
            start = time.perf_counter()
            for first in range(0, max_batch, size):
                scorer.score_batch(images[first : first + size])
            synchronize()
            seconds.append(time.perf_counter() - start)
    table = np.array(runs)[:, 1:]  # [sizes, rounds], without the warm-up
    gains = table[0] / table
    return [
        {
            "batch": size,
            "images_per_second": max_batch / float(np.median(seconds)),
            "times_one": float(np.median(gain)),
            "times_one_spread": [float(gain.min()), float(gain.max())],
        }
        for size, seconds, gain in zip(sizes, table, gains, strict=True)
    ]


def plot_curves(result: dict[str, Any], path: Path) -> None:
    """Draw the curves that a result has, side by side, to a PNG file."""
    draw = {"growth": _draw_growth, "resolution": _draw_resolution, "batches": _draw_batches}
    curves = [name for name in draw if name in result]
    figure = Figure(figsize=(6 * len(curves), 4), layout="constrained")
    for name, axes in zip(curves, figure.subplots(1, len(curves), squeeze=False)[0], strict=True):
        draw[name](axes, result[name])
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


def _draw_batches(axes: Axes, rows: Rows) -> None:
    batches, rates = zip(*((row["batch"], row["images_per_second"]) for row in rows), strict=True)
    axes.plot(batches, rates, "o-", label="mixed sizes")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="images in one pass", ylabel="images per second")
