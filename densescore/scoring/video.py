"""Score a video: every so many seconds, what a viewer sees."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from densescore.errors import DensescoreError
from densescore.io.video import frame_names, split_frame_name
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import score_many


class ScoredFrame(NamedTuple):
    """A frame of a video: its time in seconds since the first, and its scores."""

    time: float
    scores: DenseScores


def score_video(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | DenseScorer = "lite0",
    *,
    fps: float = 1.0,
    **options: Any,
) -> Iterator[ScoredFrame]:
    """Score what a viewer sees of a video every ``1/fps`` seconds, one after another, in constant memory.

    The next frames are decoded while one is scored. docs/video.md says how times, rotation and colors are understood.

    Args:
        path: of the video.
        model: a scorer, or what `DenseScorer` takes.
        fps: frames per second of the video that are scored.
        **options: of `score_many`, and of `DenseScorer`, where `model` is not one already.

    Raises:
        DensescoreError: the file is no video, or an argument does not fit; where the video is cut off or damaged, after
            the frames before that place. The message names the file.

    Example:
        >>> import tempfile, skimage
        >>> from densescore.io.video_writer import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with write_video(f"{folder}/cat.mp4", fps=10) as add:
        ...         for _ in range(15):
        ...             add(skimage.data.chelsea())
        ...     for time, scores in score_video(f"{folder}/cat.mp4", scales=(1, 1.3)):
        ...         print(time, scores.top(1)[0].label)
        0.0 Egyptian cat
        1.0 Egyptian cat
    """
    for item in score_many(frame_names(path, fps), model, **options):
        if item.scores is None:
            raise DensescoreError(item.error or "")
        yield ScoredFrame(split_frame_name(str(item.source))[1] or 0.0, item.scores)
