"""Pictures of an evaluation: precision–recall curves, and best-ranked images with their maps."""

import os
from collections.abc import Callable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import LabeledImage
from densescore.evaluation.average_precision import average_precision
from densescore.evaluation.evaluate import SetScores, class_curve, judged, located
from densescore.io.images import read_image
from densescore.io.names import as_text
from densescore.results.overlay import draw_map
from densescore.results.scores import DenseScores


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
    recall, precision = np.append(0.0, curve.recall), np.append(curve.precision[0], curve.precision)
    axes.step(recall, precision, where="pre", color="#4363d8")  # a recall was reached at its own precision
    by_2010, by_2007 = average_precision(curve), average_precision(curve, "voc2007")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    label = as_text(result.boxed.classes[column])
    axes.set_title(f"{label}: AP {by_2010:.3f} (2007 rule {by_2007:.3f})", parse_math=False)
    figure.savefig(path, dpi=100)


def draw_top(
    result: SetScores,
    column: int,
    k: float,
    score: Callable[[LabeledImage], DenseScores],
    path: str | os.PathLike[str],
    *,
    shown: int = 5,
) -> None:
    """Draw the best-ranked true images of a class and the best-ranked false ones with their maps (Figures 5 and 6).

    All maps share one scale, up to the highest peak in the picture, so that they are comparable. A colored cross marks
    the class's location (`DenseScores.locate`): green inside a box of the class, red outside.

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
    values = result.scores[result.ks.index(k), kept, column]
    order = np.argsort(-values, kind="stable")
    rows = [kept[order[truth[order]]][:shown], kept[order[~truth[order]]][:shown]]
    inside = located(result)
    chosen = [result.boxed.images[index] for row in rows for index in row]
    scored = {image.name: score(image) for image in chosen}
    peak = max((float(scores.shrunk_map(label).max()) for scores in scored.values()), default=0.0)
    figure = Figure(figsize=(3 * shown, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for line, (title, row) in enumerate(zip(("true", "false"), rows, strict=True)):
        for place in range(shown):
            axes = figure.add_subplot(2, shown, line * shown + place + 1)
            axes.set_axis_off()
            if place >= len(row):
                continue
            image = result.boxed.images[row[place]]
            draw_map(axes, read_image(image.path), scored[image.name], label, peak=peak)
            for box, owner in zip(image.boxes, image.classes, strict=True) if isinstance(image, BoxedImage) else ():
                if owner == column:
                    axes.add_patch(_rectangle(box, "white", "-", 1.5))
            hit = line == 0 and inside[row[place], column]
            if result.places is not None:
                at = result.places[row[place], column]
                axes.plot(*at, "+", color="lime" if hit else "red", markersize=14, mew=2)
            confidence = result.scores[result.ks.index(k), row[place], column] ** (1 / k)
            name = as_text(image.name)
            text = f"{title} {place + 1}: {name}\nconfidence {confidence:.2g}"
            axes.set_title(text, fontsize=8, parse_math=False)
    figure.suptitle(f"{as_text(label)}: best-ranked true images, and best-ranked false ones", parse_math=False)
    figure.savefig(path, dpi=80)


def _rectangle(box: NDArray[np.float32], color: str, style: str, width: float) -> Rectangle:
    x0, y0, x1, y1 = map(float, box)
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=width)
