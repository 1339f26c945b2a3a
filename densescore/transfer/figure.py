"""A picture of an image's labeled patches, as Figure 4 of the paper."""

import os
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.io.images import Pixels
from densescore.io.names import as_text
from densescore.transfer.patch_labels import AMBIGUOUS, LabelRule, why_left_out

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


def draw_patch_labels(
    pixels: Pixels,
    patches: NDArray[np.float32],
    labels: NDArray[np.int64],
    image: BoxedImage,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    rule: LabelRule | None = None,
    shown: int = 6,
    seed: int = 0,
) -> None:
    """Draw an image's boxes (difficult ones dashed), and random examples of the patches of each label, to a PNG.

    `patches` ``[M, 4]`` with labels ``[M]`` of `label_patches` by `rule`; ambiguous patches have a reason below.
    """
    # A color and a name per label
    present = [label for label in np.unique(labels).tolist() if label != AMBIGUOUS] + [AMBIGUOUS]
    objects = sorted({*map(int, image.classes)} - {*present})  # without a positive patch
    names = {**dict(enumerate(map(as_text, classes))), len(classes): "background", AMBIGUOUS: "left out"}
    colors = {label: _COLORS[index % len(_COLORS)] for index, label in enumerate([*objects, *present])}

    # The image with its boxes
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(1.5 * shown, 5 + 1.7 * len(present)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(present) + 1, shown, height_ratios=[3, *[1] * len(present)])
    axes = figure.add_subplot(grid[0, :])
    axes.imshow(pixels, extent=(0, width, height, 0))
    for box, owner, difficult in zip(image.boxes, image.classes, image.difficult, strict=True):
        color = colors[int(owner)]
        axes.add_patch(_rectangle(box, color, "--" if difficult else "-", 3))
        tag = names[int(owner)] + (": no positive patch" if int(owner) in objects else "")
        axes.text(
            max(float(box[0]), 0) + 0.01 * width,
            max(float(box[1]), 0) + 0.01 * height,  # inside its box, where no other box's tag is likely to be
            tag,
            color="white",
            bbox={"facecolor": color, "alpha": 0.7, "linewidth": 0, "pad": 1.5},
            fontsize=8,
            va="top",
            parse_math=False,
        )

    # A row of patches per label
    draw = np.random.default_rng(seed)
    for row, label in enumerate(present, 1):
        members = (labels == label).nonzero()[0]
        examples = np.sort(draw.choice(members, min(shown, len(members)), replace=False))
        reasons: list[str] = []
        if label == AMBIGUOUS:
            texts = [*map(as_text, classes)]
            reasons = why_left_out(patches[examples], image.boxes, image.classes, texts, rule, image.difficult)
        for column in range(shown):
            cell = figure.add_subplot(grid[row, column])
            cell.set_axis_off()
            if column == 0:
                title = f"{names[label]}: {len(members)}"
                cell.set_title(title, color=colors[label], fontsize=9, loc="left", parse_math=False)
            if column < len(examples):
                patch = patches[examples[column]]
                axes.add_patch(_rectangle(patch, colors[label], ":", 1))
                cell.imshow(pixels, extent=(0, width, height, 0))
                cell.set_xlim(patch[0], patch[2])
                cell.set_ylim(patch[3], patch[1])
            if column < len(reasons):
                text = textwrap.fill(reasons[column], 24)
                cell.text(
                    0.5, -0.03, text, transform=cell.transAxes, fontsize=7, ha="center", va="top", parse_math=False
                )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    title = f"{as_text(image.name)}: boxes, and examples of its {len(patches)} patches"
    axes.set_title(title, parse_math=False)
    figure.savefig(path, dpi=90)


def _rectangle(box: NDArray[np.float32], color: str, style: str, width: float) -> Rectangle:
    x0, y0, x1, y1 = map(float, box)
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=width)
