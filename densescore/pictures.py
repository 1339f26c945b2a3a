"""Pictures of data and results: labelled patches, precision–recall curves, best-ranked images with their maps."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densescore.average_precision import average_precision
from densescore.data.boxed import BoxedImage
from densescore.data.patch_labels import AMBIGUOUS
from densescore.evaluation import SetScores, class_curve, judged, located
from densescore.image import Pixels, read_image
from densescore.scores import DenseScores

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


def draw_patch_labels(
    pixels: Pixels,
    patches: NDArray[np.float32],
    labels: NDArray[np.int64],
    image: BoxedImage,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    shown: int = 6,
    seed: int = 0,
) -> None:
    """Draw an image's boxes, and examples of the patches of each label, as Figure 4 of the paper.

    Args:
        pixels: RGB ``[H, W, 3]``.
        patches: ``[M, 4]``, in image pixels.
        labels: ``[M]``, as `label_patches` gives them.
        image: its boxes; difficult ones are dashed.
        classes: C names.
        path: of the PNG.
        shown: patches per label, drawn at random.
        seed: of the draw.
    """
    present = [label for label in np.unique(labels).tolist() if label != AMBIGUOUS] + [AMBIGUOUS]
    names = {**dict(enumerate(classes)), len(classes): "background", AMBIGUOUS: "left out"}
    colours = {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(present)}
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(1.5 * shown, 5 + 1.7 * len(present)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(present) + 1, shown, height_ratios=[3, *[1] * len(present)])
    axes = figure.add_subplot(grid[0, :])
    axes.imshow(pixels, extent=(0, width, height, 0))
    for box, owner, difficult in zip(image.boxes, image.classes, image.difficult, strict=True):
        colour = colours.get(int(owner), "white")
        axes.add_patch(_rectangle(box, colour, "--" if difficult else "-", 3))
        axes.text(box[0], box[1], names[int(owner)], color="white", backgroundcolor=colour, fontsize=8, va="bottom")
    draw = np.random.default_rng(seed)
    for row, label in enumerate(present, 1):
        members = (labels == label).nonzero()[0]
        chosen = np.sort(draw.choice(members, min(shown, len(members)), replace=False))
        for column in range(shown):
            cell = figure.add_subplot(grid[row, column])
            cell.set_axis_off()
            if column == 0:
                cell.set_title(f"{names[label]}: {len(members)}", color=colours[label], fontsize=9, loc="left")
            if column < len(chosen):
                patch = patches[chosen[column]]
                axes.add_patch(_rectangle(patch, colours[label], ":", 1))
                cell.imshow(pixels, extent=(0, width, height, 0))
                cell.set_xlim(patch[0], patch[2])
                cell.set_ylim(patch[3], patch[1])
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    axes.set_title(f"{image.name}: boxes, and examples of its {len(patches)} patches")
    figure.savefig(path, dpi=90)


def draw_curve(result: SetScores, column: int, k: float, path: str | os.PathLike[str]) -> None:
    """Draw one class's precision–recall curve, with its average precision by both rules, to a PNG.

    Args:
        result: of `score_set`.
        column: index of the class, which must have a positive image.
        k: exponent of the image score.
        path: of the PNG.
    """
    curve = class_curve(result, column, k)
    assert curve is not None
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.step(curve.recall, curve.precision, where="post", color="#4363d8")
    by_2010, by_2007 = average_precision(curve), average_precision(curve, "voc2007")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"{result.boxed.classes[column]}: AP {by_2010:.3f} (2007 rule {by_2007:.3f})")
    figure.savefig(path, dpi=100)


def draw_top(
    result: SetScores,
    column: int,
    k: float,
    score: Callable[[BoxedImage], DenseScores],
    path: str | os.PathLike[str],
    *,
    shown: int = 5,
) -> None:
    """Draw the best-ranked true images of a class and the best-ranked false ones with their maps (Figures 5 and 6).

    A map is coloured from 0 to the highest peak in the picture, so that images compare; a cross marks the class's place
    (`DenseScores.locate`).

    Args:
        result: of `score_set`.
        column: index of the class.
        k: exponent of the image score.
        score: image → scores, asked again for the few images that are drawn.
        path: of the PNG.
        shown: images per row.
    """
    label = result.boxed.classes[column]
    kept, truth = judged(result, column)
    scores = result.scores[result.ks.index(k), kept, column]
    order = np.argsort(-scores, kind="stable")
    rows = [kept[order[truth[order]]][:shown], kept[order[~truth[order]]][:shown]]
    inside = located(result)
    chosen = [result.boxed.images[index] for row in rows for index in row]
    maps = {image.name: score(image).response_map(label)[0].cpu().numpy() for image in chosen}  # [H, W] each
    top = max(float(values.max()) for values in maps.values())
    figure = Figure(figsize=(3 * shown, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    norm = PowerNorm(0.5, 0, max(top, 1e-12), clip=True)
    for line, (title, row) in enumerate(zip(("true", "false"), rows, strict=True)):
        for place in range(shown):
            axes = figure.add_subplot(2, shown, line * shown + place + 1)
            axes.set_axis_off()
            if place >= len(row):
                continue
            image = result.boxed.images[row[place]]
            values = maps[image.name]
            extent = (0, image.width, image.height, 0)
            axes.imshow(read_image(image.path), extent=extent)
            axes.imshow(values, cmap="turbo", norm=norm, alpha=0.1 + 0.6 * np.asarray(norm(values)), extent=extent)
            for box, owner in zip(image.boxes, image.classes, strict=True):
                if owner == column:
                    axes.add_patch(_rectangle(box, "white", "-", 1.5))
            hit = line == 0 and inside[row[place], column]
            if result.places is not None:
                at = result.places[row[place], column]
                axes.plot(*at, "+", color="lime" if hit else "red", markersize=14, mew=2)
            value = result.scores[result.ks.index(k), row[place], column]
            axes.set_title(f"{title} {place + 1}: {image.name}\nscore {value:.2g}", fontsize=8)
    figure.suptitle(f"{label}: best-ranked true images, and best-ranked false ones")
    figure.savefig(path, dpi=80)


def _rectangle(box: NDArray[np.float32], colour: str, style: str, width: float) -> Rectangle:
    x0, y0, x1, y1 = map(float, box)
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=style, linewidth=width)
