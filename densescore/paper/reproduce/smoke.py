"""Tiny stand-ins for ImageNet and VOC, drawn: colored discs and squares, in the very layouts of the real sets."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = ((220, 60, 60), (60, 200, 60), (60, 80, 230))
OBJECTS, ACTIONS = ("disc", "square"), ("running", "sitting")
HEIGHT, WIDTH = 96, 128


def draw_all(root: Path) -> dict[str, Path]:
    """Write the sets below `root`; their folders by the names that `Chain` takes."""
    draw = np.random.default_rng(0)
    for index in range(len(COLORS)):
        for number in range(8):
            folder = root / "imagenet" / "train" / f"n{index + 1:08}"
            folder.mkdir(parents=True, exist_ok=True)
            _picture(draw, index, index % 2, (24, 8, 104, 88)).save(folder / f"{number}.jpg")
    for year, sets in (("VOC2007", {"trainval": 6, "test": 4}), ("VOC2012", {"train": 6, "val": 4})):
        for split, count in sets.items():
            _write_voc(root / "voc" / year, split, count, draw)
    return {"imagenet": root / "imagenet", "voc07": root / "voc", "voc12": root / "voc"}


def _picture(draw: np.random.Generator, color: int, shape: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A noisy picture with a shape that fills its box."""
    x0, y0, x1, y1 = box
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    u, v = (cols - (x0 + x1) / 2) * 2 / (x1 - x0), (rows - (y0 + y1) / 2) * 2 / (y1 - y0)  # in [-1, 1] inside
    inside: NDArray[np.bool_] = np.hypot(u, v) < 1 if shape == 0 else np.maximum(abs(u), abs(v)) < 1
    pixels = draw.normal(128, 30, (HEIGHT, WIDTH, 3))
    pixels[inside] = np.array(COLORS[color]) + draw.normal(0, 20, (int(inside.sum()), 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _write_voc(voc: Path, split: str, count: int, draw: np.random.Generator) -> None:
    """A split with one object in each picture, which is a person of one action, too."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Action"):
        (voc / name).mkdir(parents=True, exist_ok=True)
    names = [f"{split}_{index:03}" for index in range(count)]
    for index, name in enumerate(names):
        box = (40, 16, 112, 88)  # a patch of the short side's half to whole width shows it
        _picture(draw, index % 2, index % 2, box).save(voc / "JPEGImages" / f"{name}.jpg")
        x0, y0, x1, y1 = box
        (voc / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object>"
            f"<name>{OBJECTS[index % 2]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox><difficult>0</difficult></object></annotation>"
        )
    for task, labels, person in (("Main", OBJECTS, ""), ("Action", ACTIONS, " 1")):
        sets = voc / "ImageSets" / task
        (sets / f"{split}.txt").write_text("".join(f"{name}{person}\n" for name in names))
        for column, label in enumerate(labels):
            rows = (f"{name}{person} {1 if index % 2 == column else -1}\n" for index, name in enumerate(names))
            (sets / f"{label}_{split}.txt").write_text("".join(rows))
