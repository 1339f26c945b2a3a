"""A tree of small pictures, one folder per class, that a small network can tell apart by their color."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"n00000001": (200, 40, 40), "n00000002": (40, 200, 40), "n00000003": (40, 40, 200)}


def write_tree(root: Path, count: int = 20, classes: int = 3, height: int = 40, width: int = 48) -> Path:
    """`count` noisy pictures for each of the first `classes` classes."""
    draw = np.random.default_rng(0)
    for name, color in list(COLORS.items())[:classes]:
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = draw.normal(0, 40, (height, width, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03}.png")
    return root
