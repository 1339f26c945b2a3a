"""A fully connected layer as a convolution: one pass of the trunk, and the head at every cell of its map."""

from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import skimage
import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from densescore import DenseScorer
from densescore.io.images import level_pixels


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    photo = skimage.data.chelsea()
    scorer = DenseScorer("lite0", scales=(1.6,), runtime="torch")
    scores = scorer.score(photo)
    pyramid, network = scores.pyramid, scorer.dense
    (level,) = pyramid.levels
    with torch.inference_mode():
        trunk = network.fast_trunk(scorer.level(photo, pyramid, level))  # [1, C, rows + 6, cols + 6]
    activity = trunk[0].float().pow(2).mean(0).sqrt().numpy()
    column = scores.patch_scores[:, scores.index("Egyptian cat")].reshape(level.rows, level.cols).numpy()

    row, col = divmod(int(column.argmax()), level.cols)
    x0, y0, x1, y1 = pyramid.window(level, row, col)
    tall, wide = network.window
    steps: tuple[tuple[Any, tuple[float, float, float, float], str | None], ...] = (
        (level_pixels(photo, pyramid, level), (x0, y0, x1, y1), None),
        (activity, (col, row, col + wide, row + tall), "gray"),
        (column, (col, row, col + 1, row + 1), "turbo"),
    )
    titles = (
        "a level of the photograph, in pixels",
        f"trunk: {trunk.shape[1]} channels, their root mean square",
        'head at each cell: "Egyptian cat"',
    )
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for place, (values, box, colors), title in zip(axes, steps, titles, strict=True):
        shape = np.shape(values)
        place.imshow(values, extent=(0, shape[1], shape[0], 0), cmap=colors)
        edge = (box[0], box[1]), box[2] - box[0], box[3] - box[1]
        place.add_patch(Rectangle(*edge, fill=False, edgecolor="#ff4fa0", linewidth=2.5))
        place.set_title(title, fontsize=10)
        place.text(0.5, -0.05, f"{shape[0]} × {shape[1]}", transform=place.transAxes, ha="center", va="top")
        place.set_axis_off()
    for (_, left, _), (_, right, _), here, there in zip(steps[:-1], steps[1:], axes[:-1], axes[1:], strict=True):
        for corner in (1, 3):  # from the right side of a window to the left side of what it becomes
            line = ConnectionPatch(
                (left[2], left[corner]), (right[0], right[corner]), "data", "data", axesA=here, axesB=there
            )
            line.set(color="#ff4fa0", linewidth=1)
            figure.add_artist(line)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    cyclopts.run(main)
