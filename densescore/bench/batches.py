"""Images per second by the number of images in one pass: ``densescore-bench --batch``."""

import time
from typing import Any

import numpy as np

from densescore.bench.run import photograph, synchronize
from densescore.scoring.scorer import DenseScorer

PHOTO_SIZES = ((375, 500), (333, 500), (500, 375), (375, 500), (480, 640), (500, 333), (375, 500), (400, 500))
"""Height and width of photographs in a batch of mixed sizes."""

Rows = list[dict[str, Any]]


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
