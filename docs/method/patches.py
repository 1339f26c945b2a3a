"""Which patches are scored: the levels of a photograph, their cells, and one patch of each in the photograph."""

from pathlib import Path

import cyclopts
import numpy as np
import skimage
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from densescore import Pyramid
from densescore.io.images import level_pixels

COLORS = ("#ffd000", "#00c8ff", "#ff4fa0")


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    photo = skimage.data.chelsea()
    height, width = photo.shape[:2]
    pyramid = Pyramid.of(height, width, scales=(1, 1.6, 2.4))
    boxes = pyramid.boxes()  # [M, 4]
    sizes = [pyramid.padded_size(level) for level in pyramid.levels]
    shown = [(height, width), *sizes]
    figure = Figure(figsize=(9, 2.15), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[cols / rows for rows, cols in shown])
    axes[0].imshow(photo)
    axes[0].set_title("the photograph", fontsize=10)
    for place, level, size, color in zip(axes[1:], pyramid.levels, sizes, COLORS, strict=True):
        place.imshow(level_pixels(photo, pyramid, level), extent=(0, size[1], size[0], 0))
        place.add_patch(Rectangle((0, 0), level.width, level.height, fill=False, edgecolor="white", linestyle=":"))
        middle = pyramid.patch / 2
        rows, cols = np.mgrid[: level.rows, : level.cols] * pyramid.stride + middle
        place.plot(cols.ravel(), rows.ravel(), ".", color=color, markersize=3)
        row, col = (level.rows - 1) // 2, level.cols // 2
        x0, y0, x1, y1 = pyramid.window(level, row, col)
        place.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2.5))
        place.plot((x0 + x1) / 2, (y0 + y1) / 2, "o", color=color, markersize=7)
        x0, y0, x1, y1 = boxes[level.start + row * level.cols + col]
        axes[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2.5))
        cells = f"{level.rows} × {level.cols} cells"
        place.set_title(f"λ = {level.scale:g}: {size[0]} × {size[1]}\n{cells}", fontsize=10)
    for place in axes:
        place.set_axis_off()
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    cyclopts.run(main)
