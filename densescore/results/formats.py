"""Scores in the forms that other libraries read: pandas rows, supervision's detections, COCO's results."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.results.regions import class_regions

if TYPE_CHECKING:
    from pandas import DataFrame
    from supervision import Detections

    from densescore.results.scores import DenseScores

SIDES = ("x0", "y0", "x1", "y1")


def to_row(
    scores: "DenseScores",
    top: int = 5,
    labels: Sequence[str] | None = None,
    maps: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Plain values, as ``pandas.DataFrame([scores.to_row(), …])`` takes them.

    Args:
        scores: of one image.
        top: classes to rank.
        labels: classes whose regions to list; the best one by default.
        maps: their response maps ``[len(labels), H, W]``, where they are known already.

    Returns:
        ``height``, ``width``, ``patches``; ``label``, ``score`` and ``confidence`` of the best class, and its
        ``best_patch``: ``x0 y0 x1 y1`` in image pixels and ``score``; ``labels``, ``scores``, ``confidences`` and
        ``best_patch_scores`` of the ranked classes; ``regions``, of each mapped class in turn, highest peak
        first: ``label``, ``x0 y0 x1 y1`` (``x1`` and ``y1`` exclusive) ``peak`` and
        ``score`` (see `Region`).

    Example:
        >>> import densescore, skimage
        >>> row = densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).to_row(top=2)
        >>> row["label"], row["labels"], sorted(row["regions"][0])
        ('Egyptian cat', ['Egyptian cat', 'tiger cat'], ['label', 'peak', 'score', 'x0', 'x1', 'y0', 'y1'])
    """
    ranked = scores.top(top)
    if not ranked:
        raise DensescoreError(f"top must be at least 1, got {top}")
    first = ranked[0]
    chosen = [first.label] if labels is None else labels
    regions = [
        {"label": label, **dict(zip(SIDES, region.box, strict=True)), "peak": region.peak, "score": region.score}
        for label, region in class_regions(scores, chosen, maps=maps)
    ]
    best = int(scores.patch_scores[:, scores.index(first.label)].argmax())
    box = dict(zip(SIDES, scores.boxes[best].tolist(), strict=True))
    return {
        "height": scores.pyramid.height,
        "width": scores.pyramid.width,
        "patches": len(scores.pyramid),
        "label": first.label,
        "score": first.score,
        "confidence": first.confidence,
        "best_patch": {**box, "score": first.best_patch},
        "labels": [item.label for item in ranked],
        "scores": [item.score for item in ranked],
        "confidences": [item.confidence for item in ranked],
        "best_patch_scores": [item.best_patch for item in ranked],
        "regions": regions,
    }


def to_df(scores: "DenseScores", labels: str | Sequence[str] | None = None) -> "DataFrame":
    """A row per patch and class, as a pandas DataFrame.

    Args:
        scores: of one image.
        labels: a class or classes; the best one by default.

    Returns:
        ``label``, ``patch`` (its row in ``patch_scores``), ``score``, ``scale`` and ``x0 y0 x1 y1`` in image pixels,
        not clipped to the image.

    Raises:
        DensescoreError: no such class, or pandas is not installed.

    Example:
        >>> import densescore, skimage
        >>> table = densescore.classify(skimage.data.chelsea(), scales=(1, 2)).to_df(["Egyptian cat", "tabby"])
        >>> best = table.loc[table.groupby("label")["score"].idxmax()]
        >>> best["label"].tolist(), (best["score"] > 0.1).tolist()
        (['Egyptian cat', 'tabby'], [True, True])
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError("to_df needs pandas: pip install pandas") from error
    names = _chosen(scores, labels)
    geometry = {
        "scale": np.concatenate([np.full(level.rows * level.cols, level.scale) for level in scores.levels]),
        **dict(zip(SIDES, scores.boxes.numpy().T, strict=True)),
    }
    numbers, values = range(len(scores)), scores.select(names).patch_scores.cpu().numpy()  # [M, len(names)]
    tables = [
        pandas.DataFrame({"label": name, "patch": numbers, "score": column, **geometry})
        for name, column in zip(names, values.T, strict=True)
    ]
    empty = pandas.DataFrame(columns=["label", "patch", "score", *geometry])
    return pandas.concat(tables, ignore_index=True) if tables else empty


def to_supervision(
    scores: "DenseScores", labels: str | Sequence[str] | None = None, share: float | None = None
) -> "Detections":
    """Regions as ``supervision.Detections`` (extra ``train``), for its annotators, filters and metrics.

    Args:
        scores: of one image.
        labels: a class or classes; the best one by default.
        share: see `DenseScores.find_boxes`.

    Returns:
        ``xyxy`` in image pixels; ``confidence``, the region's score (see `Region`); ``class_id``, the column of
        ``patch_scores``, or for groups of classes C, C + 1 and so on; ``data["class_name"]``.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingPackageError("to_supervision needs supervision: pip install 'densescore[train]'") from error
    chosen = _chosen(scores, labels)
    found = class_regions(scores, chosen, share)
    names = list(dict.fromkeys([*scores.labels, *chosen]))
    ids = {label: column for column, label in enumerate(names)}
    return supervision.Detections(
        xyxy=np.array([region.box for _, region in found], np.float32).reshape(-1, 4),
        confidence=np.array([region.score for _, region in found], np.float32),
        class_id=np.array([ids[label] for label, _ in found], np.int64),
        data={"class_name": np.array([label for label, _ in found], np.str_)},
    )


def to_coco(
    scores: "DenseScores",
    image_id: int,
    labels: str | Sequence[str] | None = None,
    *,
    category_ids: Mapping[str, int] | None = None,
    share: float | None = None,
) -> list[dict[str, Any]]:
    """Regions in the format of COCO's results: the lists of all images together are what ``COCO.loadRes`` reads.

    Args:
        scores: of one image.
        image_id: of the image in the set.
        labels: a class or classes; the best one by default.
        category_ids: ids of the set's classes; by default the columns of ``patch_scores``.
        share: see `DenseScores.find_boxes`.

    Returns:
        ``image_id``, ``category_id``, ``bbox`` (``x y width height`` in image pixels) and ``score`` (see
        `Region`), plain numbers, ready for ``json.dump``.

    Raises:
        DensescoreError: no such class, or one that `category_ids` lacks.
    """
    records = []
    for label, region in class_regions(scores, _chosen(scores, labels), share):
        if category_ids is not None and label not in category_ids:
            raise DensescoreError(f"category_ids has no id for {label!r}")
        category = scores.index(label) if category_ids is None else category_ids[label]
        x0, y0, x1, y1 = map(float, region.box)
        box = [x0, y0, x1 - x0, y1 - y0]
        records.append({"image_id": image_id, "category_id": category, "bbox": box, "score": region.score})
    return records


def _chosen(scores: "DenseScores", labels: str | Sequence[str] | None) -> Sequence[str]:
    if labels is None:
        return [scores.top(1)[0].label]
    return scores.select(labels).labels
