"""A small VOC-style set drawn in code: colored squares on noise, one color per class."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")
_COLORS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}


def annotation(width: int, height: int, objects: list[tuple[str, int, int, int, int, int]]) -> str:
    """VOC's XML; objects are (name, xmin, ymin, xmax, ymax, difficult), pixels counted from 1."""
    lines = [f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    for name, x0, y0, x1, y1, difficult in objects:
        lines.append(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>"])


def write_voc(folder: Path, counts: dict[str, int], *, side: int = 60, seed: int = 0) -> Path:
    """Write `counts` images per split; most show one square, each third one two of different classes."""
    draw = np.random.default_rng(seed)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, count in counts.items():
        shown: dict[str, list[str]] = {}
        for index in range(count):
            image = f"{split}_{index:03d}"
            pixels = draw.integers(60, 150, (side, side + 20, 3), dtype=np.uint8)
            first = index % 3
            labels = [CLASSES[first]] + ([CLASSES[(first + 1) % 3]] if index % 3 == 2 else [])
            objects = []
            for place, label in enumerate(labels):
                size = int(draw.integers(16, 26))
                x, y = int(draw.integers(0, 38 - size)) + 40 * place, int(draw.integers(0, side - size))
                pixels[y : y + size, x : x + size] = _COLORS[label]
                objects.append((label, x + 1, y + 1, x + size, y + size, 0))
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image}.jpg", quality=95)
            (folder / "Annotations" / f"{image}.xml").write_text(annotation(side + 20, side, objects))
            shown[image] = labels
        sets = folder / "ImageSets" / "Main"
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in shown))
        for label in CLASSES:
            lines = [f"{name} {1 if label in labels else -1:2d}\n" for name, labels in shown.items()]
            (sets / f"{label}_{split}.txt").write_text("".join(lines))
    return folder
