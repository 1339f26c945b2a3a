"""Results in the files of VOC's development kit, as JSON, and as pictures."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from densescore.data.labeled_set import LabeledImage
from densescore.evaluation.evaluate import ClassResult, SetScores, class_curve
from densescore.evaluation.figures import draw_curve, draw_top
from densescore.io.files import atomic_write
from densescore.io.names import label_file_names
from densescore.results.scores import DenseScores

RESULTS = "results on a set"
"""What the mark of a folder says that `write_results` wrote."""


def write_results(
    result: SetScores,
    rows: list[ClassResult],
    k: float,
    folder: Path,
    *,
    about: dict[str, Any],
    score: Callable[[LabeledImage], DenseScores] | None = None,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write a folder of results, whole or not at all.

    Per class, its label in plain characters (`file_names`): ``comp1_cls_<set>_<class>.txt`` (a line per image: name and
    score; VOC's server takes a network that was also trained on other data as ``comp2``). If an image is positive: a
    curve ``pr_<class>.png`` and, with `score`, ``top_<class>.png``. For all: ``results.json``.

    Args:
        result: of `score_set`.
        rows: of `evaluate_classes`.
        k: exponent of the image score.
        folder: a new folder.
        about: what the results rest on, for ``results.json``.
        score: image → scores, for the pictures with maps; None leaves them out.
        track: wraps the iteration over classes, for a progress bar.
        overwrite: replace `folder` if it is there and holds results that densescore wrote.
        inputs: what the results are made from; a folder that holds any of it is not replaced.

    Raises:
        DensescoreError: `folder` exists and may not be replaced.
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
        (temporary / "results.json").write_text(json.dumps(record, indent=2) + "\n")
