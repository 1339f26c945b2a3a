"""Results in the files of VOC's development kit, as JSON, and as pictures: curves, and best-ranked images with maps."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from densescore.data.boxed_set import BoxedImage
from densescore.evaluation.average_precision import average_precision
from densescore.evaluation.evaluate import ClassResult, Scorer, SetScores, class_curve, judged, located
from densescore.io.files import atomic_write
from densescore.io.images import read_image
from densescore.io.names import as_text, label_file_names, to_json
from densescore.results.draw import PICTURE_SIDE, Style, draw_map
from densescore.results.fonts import complete_fonts

RESULTS = "results on a set"
"""Mark of the folders that `write_results` wrote."""

_SHOWN = 5  # images per row of a picture


def write_results(
    result: SetScores,
    rows: list[ClassResult],
    k: float,
    folder: Path,
    *,
    about: dict[str, Any],
    score: Scorer | None = None,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write VOC's files, precision-recall curves, pictures of the top images (with `score`) and ``results.json``.

    VOC's server takes the files ``comp1_cls_…`` of a network that was also trained on other data as ``comp2``.
    """
    row = result.ks.index(k)
    with atomic_write(folder, overwrite=overwrite, folder=RESULTS, inputs=inputs) as temporary:
        for column, name in enumerate(track(label_file_names(result.boxed.classes))):
            values = result.scores[row, :, column]
            # 17 digits keep every double: rounding would make ties that the ranking did not have.
            lines = [f"{image.name} {value:.17g}\n" for image, value in zip(result.boxed.images, values, strict=True)]
            (temporary / f"comp1_cls_{result.boxed.name}_{name}.txt").write_text(
                "".join(lines),
                encoding="utf-8",
                errors="surrogateescape",  # file names as they are
            )
            if class_curve(result, column, k) is not None:
                draw_curve(result, column, k, temporary / f"pr_{name}.png")
                if score is not None:
                    draw_top(result, column, k, score, temporary / f"top_{name}.png")
        record = {**about, "set": result.boxed.name, "k": k, "classes": [asdict(item) for item in rows]}
        (temporary / "results.json").write_text(to_json(record, indent=2) + "\n")


def draw_curve(result: SetScores, column: int, k: float, path: str | os.PathLike[str]) -> None:
    """Draw the precision–recall curve of a class that has a positive image, with its AP by both rules, to a PNG."""
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


def draw_top(result: SetScores, column: int, k: float, score: Scorer, path: str | os.PathLike[str]) -> None:
    """Draw the best-ranked true images of a class and the best-ranked false ones, with maps, to a PNG (Figures 5, 6).

    All maps share one scale. A cross marks the class's place: green inside a box of the class, red outside.
    """
    label, row_of_k = result.boxed.classes[column], result.ks.index(k)
    # Rank the images
    counted, truth = judged(result, column)
    order = np.argsort(-result.scores[row_of_k, counted, column], kind="stable")
    rows = [counted[order[truth[order]]][:_SHOWN], counted[order[~truth[order]]][:_SHOWN]]
    # Score those that are drawn once more
    chosen = [result.boxed.images[index] for row in rows for index in row]
    scores = {image.name: score(image) for image in chosen}
    views = {name: each.class_map(label, PICTURE_SIDE) for name, each in scores.items()}
    peak = max((view.place.peak for view in views.values()), default=0.0)
    # Draw them
    inside = located(result)
    figure = Figure(figsize=(3 * _SHOWN, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for line, (title, row) in enumerate(zip(("true", "false"), rows, strict=True)):
        for place in range(_SHOWN):
            axes = figure.add_subplot(2, _SHOWN, line * _SHOWN + place + 1)
            axes.set_axis_off()
            if place >= len(row):
                continue
            index = row[place]
            image = result.boxed.images[index]
            draw_map(axes, read_image(image.path), views[image.name], Style(), peak)
            if isinstance(image, BoxedImage):
                for x0, y0, x1, y1 in image.boxes[image.classes == column].astype(float):
                    frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.5)
                    axes.add_patch(frame)
            if result.places is not None:
                hit = line == 0 and inside[index, column]
                axes.plot(*result.places[index, column], "+", color="lime" if hit else "red", markersize=14, mew=2)
            confidence = result.scores[row_of_k, index, column] ** (1 / k)
            text = f"{title} {place + 1}: {as_text(image.name)}\nconfidence {confidence:.2g}"
            axes.set_title(text, fontsize=8, parse_math=False)
    figure.suptitle(f"{as_text(label)}: best-ranked true images, and best-ranked false ones", parse_math=False)
    with complete_fonts(figure):
        figure.savefig(path, dpi=80)
