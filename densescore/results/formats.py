"""Scores in other libraries' forms: rows and tables of pandas, supervision's detections, COCO's results, HTML."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.names import as_text
from densescore.models.calibration import Answer, Calibration
from densescore.results.regions import Region

if TYPE_CHECKING:
    from pandas import DataFrame
    from supervision import Detections

SIDES = ("x0", "y0", "x1", "y1")

ClassRegions: TypeAlias = Mapping[str, Sequence[Region]]
"""Regions by class, best first."""


class Ranked(NamedTuple):
    """A class, its image score, that score's k-th root (`DenseScores.confidence`), and the score of its best patch.

    `probability` that the image shows the class, and the `answer` that follows; None without calibration.
    """

    label: str
    score: float
    confidence: float
    best_patch: float
    probability: float | None = None
    answer: Answer | None = None

    @property
    def shown(self) -> float:
        """The number to show: the probability, or without calibration the confidence."""
        return self.confidence if self.probability is None else self.probability


def answers(
    calibration: Calibration | None, inputs: NDArray[np.float32], labels: Sequence[str]
) -> list[tuple[float | None, Answer | None]]:
    """Probability and answer of each class, from the inputs ``[C]`` of a calibration; Nones where there is none."""
    if calibration is None:
        return [(None, None)] * len(labels)
    values = calibration.probabilities(inputs, labels).tolist()
    pairs = zip(labels, values, strict=True)
    return [(None, None) if math.isnan(value) else (value, calibration.answer(label, value)) for label, value in pairs]


def ranking_row(ranked: Sequence[Ranked], best_box: Sequence[float], regions: ClassRegions) -> dict[str, Any]:
    """The columns of `DenseScores.to_row` that follow from a ranking, the best patch's box, and regions."""
    best = ranked[0]
    return {
        "label": best.label,
        "score": best.score,
        "confidence": best.confidence,
        "probability": best.probability,
        "answer": best.answer,
        "best_patch": {**dict(zip(SIDES, best_box, strict=True)), "score": best.best_patch},
        "labels": [item.label for item in ranked],
        "scores": [item.score for item in ranked],
        "confidences": [item.confidence for item in ranked],
        "best_patch_scores": [item.best_patch for item in ranked],
        "probabilities": [item.probability for item in ranked],
        "answers": [item.answer for item in ranked],
        "regions": [
            {"label": label, **dict(zip(SIDES, region.box, strict=True)), **region.numbers()}
            for label, members in regions.items()
            for region in members
        ],
    }


def patch_table(
    labels: Sequence[str],
    patch_scores: NDArray[np.float32],
    boxes: NDArray[np.float32],
    scales: NDArray[np.float64],
) -> "DataFrame":
    """A row per patch and class, from scores ``[M, C]``, boxes ``[M, 4]`` and scales ``[M]``."""
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError("to_df needs pandas: pip install pandas") from error
    geometry = {"scale": scales, **dict(zip(SIDES, boxes.T, strict=True))}
    tables = [
        pandas.DataFrame({"label": label, "patch": range(len(boxes)), "score": column, **geometry})
        for label, column in zip(labels, patch_scores.T, strict=True)
    ]
    empty = pandas.DataFrame(columns=["label", "patch", "score", *geometry])
    return pandas.concat(tables, ignore_index=True) if tables else empty


def detections(regions: ClassRegions, class_ids: Mapping[str, int]) -> "Detections":
    """Regions as ``supervision.Detections``."""
    try:
        import supervision
    except ImportError as error:
        raise MissingPackageError("to_supervision needs supervision: pip install 'densescore[train]'") from error
    pairs = [(label, region) for label, members in regions.items() for region in members]
    return supervision.Detections(
        xyxy=np.array([region.box for _, region in pairs], np.float32).reshape(-1, 4),
        confidence=np.array([region.shown for _, region in pairs], np.float32),
        class_id=np.array([class_ids[label] for label, _ in pairs], np.int64),
        data={"class_name": np.array([label for label, _ in pairs], np.str_)},
    )


def coco_results(image_id: int, regions: ClassRegions, category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Regions in the format of COCO's results; a class without an id raises `DensescoreError`."""
    records = []
    for label, members in regions.items():
        if label not in category_ids:
            raise DensescoreError(f"category_ids has no id for {label!r}")
        for region in members:
            x0, y0, x1, y1 = map(float, region.box)
            box = [x0, y0, x1 - x0, y1 - y0]
            records.append(
                {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": region.shown}
            )
    return records


def picture_tag(jpeg: bytes, title: str) -> str:
    """A picture as markup."""
    data, alt = base64.b64encode(jpeg).decode(), html.escape(title)
    return f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" style="max-width: min(100%, 720px)">'


def paragraph(text: str) -> str:
    """Any text as markup."""
    return f"<p>{html.escape(as_text(text))}</p>"


def notebook_html(model: str, patches: str, ranked: Sequence[Ranked], picture: str) -> str:
    """A line, the table of the best classes, and a picture, which is markup already."""
    rows = "".join(
        f"<tr><td><bdi>{html.escape(as_text(best.label))}</bdi></td><td>{best.confidence:.2g}</td>"
        f"<td>{best.best_patch:.2g}</td><td>{best.score:.2g}</td></tr>"
        for best in ranked
    )
    return (
        f"<div><p><b>{html.escape(as_text(model))}</b> {patches}</p>"
        '<div style="display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start">'
        "<table><thead><tr><th>class</th><th>confidence</th><th>best patch</th><th>score</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{picture}</div></div>"
    )
