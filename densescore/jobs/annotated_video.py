"""A video with response maps drawn over it, one MP4 per class, and a table of each class's location over time."""

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from typing_extensions import Unpack

from densescore.io.files import atomic_write
from densescore.io.images import read_image
from densescore.io.names import as_text, label_file_names, to_json
from densescore.io.video import frame_names, read_frame, split_frame_name, write_video
from densescore.results.draw import PICTURE_SIDE, Style, StyleOptions, canvas_size, draw_frame
from densescore.results.heatmaps import HEATMAPS, describe
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer

_SAMPLE = 12
"""Frames scored first, over the whole video, for the default classes and the scale of the colors."""
_COLUMNS = ("time", "peak", "x", "y", "x0", "y0", "x1", "y1")


def annotate_video(
    path: str | os.PathLike[str],
    scorer: DenseScorer,
    folder: str | os.PathLike[str],
    labels: Sequence[str] = (),
    *,
    top: int = 1,
    fps: float = 5.0,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    callback: Callable[[int, int], None] = lambda done, total: None,
    **style: Unpack[StyleOptions],
) -> dict[str, Any]:
    """Write, per class, ``<class>.mp4`` and ``<class>.csv``, and one ``manifest.json``; memory does not grow.

    The pictures are drawn as `DenseScores.plot` draws them, on one scale for all frames of a class, up to the
    highest peak of 12 frames spread over the video. The table has a row per frame: ``time``, the ``peak`` of the
    heatmap, its location ``x``, ``y``, and the box ``x0 y0 x1 y1`` in pixels of the video.

    Args:
        path: path of the video.
        scorer: scores the frames.
        folder: a new folder, which appears complete or not at all.
        labels: classes or groups of classes; by default the `top` best of the 12 frames, by their mean confidence.
        top: number of classes, if `labels` is empty.
        fps: frames per second to score, and of the new video, which is as long as the old one.
        overwrite: replace an existing `folder` of heatmaps that densescore wrote.
        inputs: files of the run; a folder that holds one is not replaced.
        callback: called with the numbers of finished frames and of all frames.
        style: as for `DenseScores.plot`.

    Returns:
        The contents of ``manifest.json``.

    Raises:
        DensescoreError: the file is no video, or is cut off or damaged; unknown class; `folder` exists and may not be
            replaced.

    Example:
        >>> import densescore
        >>> scorer = densescore.DenseScorer("lite0")  # doctest: +SKIP
        >>> densescore.annotate_video("clip.mp4", scorer, "out", ["dog"])["video"]  # doctest: +SKIP
        {'fps': 5.0, 'frames': 50, 'seconds': 10.0}
    """
    path, options = os.fspath(path), Style(**style)
    names = list(frame_names(path, fps))
    if not names or split_frame_name(names[-1])[1] is None:
        read_frame(path, None)  # raises the video's error before the work

    # Choose the classes, and the scale of their colors, by a sample of frames
    count = min(len(names), _SAMPLE)
    middles = [int((index + 0.5) * len(names) / count) for index in range(count)]  # of equal stretches
    sample = [scorer.score(read_image(names[index])) for index in middles]
    labels = sample[0].select(labels).labels or _best(sample, top)
    known = list(dict.fromkeys([*scorer.labels, *labels]))
    stems = dict(zip(known, label_file_names(known), strict=True))
    peaks = {label: max(scores.class_map(label, PICTURE_SIDE).place.peak for scores in sample) for label in labels}
    geometry = sample[0].pyramid
    size = canvas_size(geometry.height, geometry.width)

    # Describe the results
    manifest = describe(sample[0], path)
    del manifest["top"], manifest["timings"], sample
    manifest["video"] = {"fps": fps, "frames": len(names), "seconds": round(len(names) / fps, 3)}
    manifest["classes"] = [
        {"label": as_text(label), "video": f"{stems[label]}.mp4", "table": f"{stems[label]}.csv", "peak": peaks[label]}
        for label in labels
    ]

    # Draw each frame as it is scored
    with atomic_write(folder, overwrite=overwrite, folder=HEATMAPS, inputs=inputs) as temporary:
        with ExitStack() as stack:
            add = {label: stack.enter_context(write_video(temporary / f"{stems[label]}.mp4", fps)) for label in labels}
            tables = {}
            for label in labels:
                file = stack.enter_context((temporary / f"{stems[label]}.csv").open("w", newline=""))
                tables[label] = csv.writer(file)
                tables[label].writerow(_COLUMNS)
            for done, name in enumerate(names, 1):
                pixels = read_image(name)
                scores, time = scorer.score(pixels), split_frame_name(name)[1] or 0.0
                for label in labels:
                    place, region = scores.locate(label)[0], scores.find_boxes(label)[0]
                    tables[label].writerow((time, place.peak, place.x, place.y, *region.box))
                    view = scores.class_map(label, PICTURE_SIDE)
                    add[label](draw_frame(pixels, view, time, size, options, peaks[label]))
                callback(done, len(names))
        (temporary / "manifest.json").write_text(to_json(manifest, indent=2) + "\n")
    return manifest


def _best(sample: Sequence[DenseScores], top: int) -> list[str]:
    """The classes of highest mean confidence, without an adapted network's background."""
    mean = torch.stack([scores.confidence() for scores in sample]).mean(0)  # [C]
    ranked = {best.label for best in sample[0].top(len(sample[0].labels))}  # all but the background
    order = mean.argsort(descending=True, stable=True).tolist()
    return [label for label in (sample[0].labels[column] for column in order) if label in ranked][:top]
