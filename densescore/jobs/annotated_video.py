"""A video → the same with response maps drawn over it, one MP4 per class, and a table of where the class is when."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from densescore.io.files import atomic_write
from densescore.io.images import read_image
from densescore.io.names import as_text, label_file_names
from densescore.io.video import frame_names, read_frame, split_frame_name
from densescore.io.video_writer import write_video
from densescore.results.heatmaps import HEATMAPS, describe
from densescore.results.overlay import Colors
from densescore.results.scores import DenseScores
from densescore.results.video_frame import canvas_size, draw_frame
from densescore.scoring.scorer import DenseScorer

_SAMPLE = 12
"""Frames that are scored first, over the whole video: they say which classes are in it, and the scale of the colors."""
_COLUMNS = ("time", "peak", "x", "y", "x0", "y0", "x1", "y1")


def annotate_video(
    path: str | os.PathLike[str],
    scorer: DenseScorer,
    folder: str | os.PathLike[str],
    labels: Sequence[str] = (),
    *,
    top: int = 1,
    fps: float = 5.0,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str = "turbo",
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    callback: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write, per class, ``<class>.mp4`` and ``<class>.csv``, and one ``manifest.json``; memory does not grow.

    The pictures are drawn as `densescore.results.overlay.draw_overlay` draws them, on one scale for all frames of a
    class. Its upper end is the highest peak of 12 frames spread over the video; a map that stays below a quarter of it
    is not drawn. The table has a row per frame: ``time``, the ``peak`` of the map, the location ``x``, ``y`` and the
    box ``x0 y0 x1 y1`` in pixels of the video.

    Args:
        path: of the video.
        scorer: scores the frames.
        folder: a new folder; it appears complete or not at all.
        labels: the classes, or groups of classes; by default the `top` best of the 12 frames, by their mean confidence.
        top: number of classes, where `labels` is empty.
        fps: frames per second that are scored, and that the new video has. It is as long as the old one.
        colors: as for `draw_overlay`.
        opacity: as for `draw_overlay`.
        colormap: as for `draw_overlay`.
        overwrite: replace `folder` if it is there and holds heatmaps that densescore wrote.
        inputs: files of the run; a folder that holds one is not replaced.
        callback: called with the number of frames that are done, and of all.

    Returns:
        The manifest, as it is written.

    Raises:
        DensescoreError: the file is no video, or is cut off or damaged; no such class; `folder` exists and may not be
            replaced.
    """
    path = os.fspath(path)
    names = list(frame_names(path, fps))
    if not names or split_frame_name(names[-1])[1] is None:
        read_frame(path, None)  # raises what is wrong with it, before the work
    sample = [scorer.score(read_image(names[index])) for index in _spread(len(names))]
    labels = sample[0].select(labels).labels or _best(sample, top)
    known = list(dict.fromkeys([*scorer.labels, *labels]))
    stems = dict(zip(known, label_file_names(known), strict=True))
    peaks = {label: max(float(scores.shrunk_map(label).max()) for scores in sample) for label in labels}
    geometry = sample[0].pyramid
    size = canvas_size(geometry.height, geometry.width)
    manifest = describe(sample[0], path)
    del manifest["top"], manifest["timings"], sample
    manifest["video"] = {"fps": fps, "frames": len(names), "seconds": round(len(names) / fps, 3)}
    manifest["classes"] = [
        {"label": as_text(label), "video": f"{stems[label]}.mp4", "table": f"{stems[label]}.csv", "peak": peaks[label]}
        for label in labels
    ]
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
                    tables[label].writerow((time, *_where(scores, label)))
                    add[label](
                        draw_frame(
                            pixels,
                            scores,
                            label,
                            time,
                            size,
                            peak=peaks[label],
                            colors=colors,
                            opacity=opacity,
                            colormap=colormap,
                        )
                    )
                callback(done, len(names))
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _spread(count: int) -> list[int]:
    """Indices of at most 12 of `count` frames, in order: the middles of as many equal stretches."""
    chosen = min(count, _SAMPLE)
    return [int((index + 0.5) * count / chosen) for index in range(chosen)]


def _best(sample: Sequence[DenseScores], top: int) -> list[str]:
    """The classes whose mean confidence is highest; an adapted network's background is left out."""
    mean = torch.stack([scores.confidence() for scores in sample]).mean(0)  # [C]
    ranked = {best.label for best in sample[0].top(len(sample[0].labels))}  # all but the background
    order = mean.argsort(descending=True, stable=True).tolist()
    return [label for label in (sample[0].labels[column] for column in order) if label in ranked][:top]


def _where(scores: DenseScores, label: str) -> tuple[float, ...]:
    place, region = scores.locate(label)[0], scores.find_boxes(label)[0]
    return (float(scores.shrunk_map(label).max()), place.x, place.y, *region.box)
