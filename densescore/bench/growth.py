"""How time and memory grow: with the number of patches, the resolution of the image, and the images in one pass."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densescore.bench.machine import peak_memory
from densescore.io.images import Pixels
from densescore.scoring.scorer import DenseScorer

MakeScorer = Callable[..., DenseScorer]
"""A scorer of the network under test with other options of `DenseScorer`."""


def photograph(height: int, width: int) -> Pixels:
    """A smooth random picture, which a codec takes about as long for as for a photograph."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def growth_curve(make: MakeScorer, max_patches: int) -> list[dict[str, Any]]:
    """Score more and more patches, up to about `max_patches`, in three ways.

    The ways: more scales of one image; longer images at the paper's scales; larger images with patches of 224 pixels.
    Each step takes the better of two runs; from 50,000 patches on there is only one.
    """
    rows = []
    for way, options, pixels in _steps(make, max_patches):
        scorer = make(**options, max_cells=2 * max_patches)
        patches, seconds = len(scorer.pyramid(*pixels.shape[:2])), []
        for _ in range(2 if patches < 50_000 else 1):
            start = time.perf_counter()
            scorer.score(pixels)
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "way": way,
                "image": [*pixels.shape[:2]],
                "patches": patches,
                "seconds": min(seconds),
                "microseconds_per_patch": 1e6 * min(seconds) / patches,
                "peak_memory_MB": peak_memory(),
            }
        )
    return rows


def _steps(make: MakeScorer, max_patches: int) -> Iterator[tuple[str, dict[str, Any], Pixels]]:
    """All steps, sorted by patches: the peak memory that is measured is the process's so far."""
    steps: list[tuple[int, str, dict[str, Any], Pixels]] = []
    ways: dict[str, Callable[[int], tuple[dict[str, Any], Pixels]]] = {
        "more scales": lambda n: ({"scales": tuple(np.geomspace(1, 4, n).tolist())}, photograph(375, 500)),
        "longer images": lambda n: ({}, photograph(375, 500 * n)),
        "larger images": lambda n: ({"patch_sizes": (224,)}, photograph(320 * n, 320 * n)),
    }
    for way, step in ways.items():
        for n in (1, 2, 3, 5, 8, 12, 27, 60, 135, 400, 1200, 3600):
            options, pixels = step(n)
            patches = len(make(**options, max_cells=10**9).pyramid(*pixels.shape[:2]))
            if patches > max_patches or pixels.nbytes > 2**30:
                break
            steps.append((patches, way, options, pixels))
    for _, way, options, pixels in sorted(steps, key=lambda step: step[0]):
        yield way, options, pixels


def resolution_curve(scorer: DenseScorer, megapixels: list[float]) -> list[dict[str, Any]]:
    """Stages of scoring a JPEG of growing size at the scorer's scales, 4:3; the median of three runs."""
    rows = []
    for size in sorted(megapixels):
        height = round((size * 1e6 * 3 / 4) ** 0.5)
        file = cv2.imencode(".jpg", photograph(height, round(height * 4 / 3)))[1].tobytes()
        runs = [scorer.score(file).timings for _ in range(3)]
        stages = {stage: float(np.median([run[stage] for run in runs])) for stage in runs[0]}
        rows.append({"megapixels": size, "file_MB": len(file) / 1e6, "stages": stages, "peak_memory_MB": peak_memory()})
    return rows


PHOTO_SIZES = ((375, 500), (333, 500), (500, 375), (375, 500), (480, 640), (500, 333), (375, 500), (400, 500))
"""Height and width of photographs as they come, one after another."""


def batch_curve(scorer: DenseScorer, most: int, rounds: int) -> list[dict[str, Any]]:
    """Images per second for 1, 2, 4, … images in one pass: photographs of mixed sizes, all batch sizes in turn."""
    images = [photograph(*PHOTO_SIZES[index % len(PHOTO_SIZES)]) for index in range(most)]
    sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    runs: list[list[float]] = [[] for _ in sizes]
    for _ in range(rounds + 1):
        for size, seconds in zip(sizes, runs, strict=True):
            start = time.perf_counter()
            for first in range(0, most, size):
                scorer.score_batch(images[first : first + size])
            seconds.append(time.perf_counter() - start)
    table = np.array(runs)[:, 1:]  # the first round warms up
    gains = table[0] / table  # [sizes, rounds]
    return [
        {
            "batch": size,
            "images_per_second": most / float(np.median(seconds)),
            "times_one": float(np.median(gain)),
            "times_one_spread": [float(gain.min()), float(gain.max())],
        }
        for size, seconds, gain in zip(sizes, table, gains, strict=True)
    ]


def plot_growth(result: dict[str, Any], path: Path) -> None:
    """Draw what is there of ``result["growth"]``, ``result["resolution"]`` and ``result["batches"]`` to a PNG file."""
    curves = [name for name in ("growth", "resolution", "batches") if name in result]
    figure = Figure(figsize=(6 * len(curves), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for name, axes in zip(curves, figure.subplots(1, len(curves), squeeze=False)[0], strict=True):
        if name == "growth":
            rows = result["growth"]
            for way in dict.fromkeys(row["way"] for row in rows):
                points = [(row["patches"], row["seconds"]) for row in rows if row["way"] == way]
                axes.loglog(*zip(*points, strict=True), "o-", label=way)
            last = max(rows, key=lambda row: row["patches"])
            ends = [min(row["patches"] for row in rows), last["patches"]]
            line = [last["seconds"] * patches / last["patches"] for patches in ends]
            axes.loglog(ends, line, "--", color="gray", label="in proportion")
            axes.set(xlabel="patches", ylabel="seconds per image")
        elif name == "batches":
            rows = result["batches"]
            axes.plot(
                [row["batch"] for row in rows], [row["images_per_second"] for row in rows], "o-", label="mixed sizes"
            )
            axes.set_xscale("log", base=2)
            axes.set_ylim(bottom=0)
            axes.set(xlabel="images in one pass", ylabel="images per second")
        else:
            rows = result["resolution"]
            below = np.zeros(len(rows))
            for stage in rows[0]["stages"]:
                seconds = np.array([row["stages"][stage] for row in rows])
                axes.bar([f"{row['megapixels']:g}" for row in rows], seconds, bottom=below, label=stage)
                below += seconds
            axes.set(xlabel="megapixels of the JPEG", ylabel="seconds per image")
        axes.legend()
    figure.savefig(path, dpi=120, format="png")
