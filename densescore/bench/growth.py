"""How time and memory grow with the number of patches."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densescore.bench.machine import peak_memory
from densescore.engine import DenseScorer


def growth_curve(scorer: DenseScorer, sides: list[int]) -> list[dict[str, Any]]:
    """Score square images of growing sides; the better of two runs each, and the process's peak memory after it."""
    rows = []
    for side in sorted(sides):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            patches = len(scorer.score(pixels).boxes)
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "side": side,
                "patches": patches,
                "seconds": min(seconds),
                "microseconds_per_patch": 1e6 * min(seconds) / patches,
                "peak_memory_MB": peak_memory(),
            }
        )
    return rows


def plot_growth(result: dict[str, Any], path: Path) -> None:
    """Draw the curve of ``result["growth"]`` to a PNG file."""
    rows = result["growth"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.loglog([row["patches"] for row in rows], [row["seconds"] for row in rows], "o-", label="measured")
    last = rows[-1]
    line = [last["seconds"] * row["patches"] / last["patches"] for row in rows]
    axes.loglog([row["patches"] for row in rows], line, "--", color="grey", label="in proportion")
    axes.set(xlabel="patches", ylabel="seconds per image")
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
