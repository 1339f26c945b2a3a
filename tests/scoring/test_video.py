"""The scores of a video, frame by frame."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from densescore import DensescoreError, DenseScorer, score_video
from densescore.io.video_writer import write_video
from tests.conftest import Toy
from tests.io.clips import gray, write_clip


def test_each_frame_has_the_scores_of_its_picture(
    tmp_path: Path, lite0: DenseScorer, cat: np.ndarray, coffee: np.ndarray
) -> None:
    with write_video(tmp_path / "clip.mp4", fps=5) as add:
        for index in range(10):
            add(cat if index < 5 else coffee[:300, :451])
    scorer = lite0.with_scales((1, 1.3))
    found = list(score_video(tmp_path / "clip.mp4", scorer, fps=2))
    assert [frame.time for frame in found] == [0, 0.5, 1, 1.5]
    assert [frame.scores.top(1)[0].label for frame in found] == ["Egyptian cat"] * 2 + ["espresso"] * 2
    own = scorer.score(cat[:300, :451]).confidence()
    np.testing.assert_allclose(found[0].scores.confidence()[own > 0.05], own[own > 0.05], rtol=0.3)


def test_an_error_comes_after_the_frames_before_it(tmp_path: Path, toy_scorer: DenseScorer) -> None:
    path = tmp_path / "cut.mp4"
    with write_video(path, fps=5) as add:
        for index in range(30):
            add(np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    times = []
    with pytest.raises(DensescoreError, match=r"cut\.mp4: is cut off"):
        for frame in score_video(path, toy_scorer):
            times.append(frame.time)
    assert times == [0, 1, 2]


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Of 400 frames of 1.4 MB, 550 MB in all, no more is held than of the first 60."""
    resource = pytest.importorskip("resource")  # not on Windows
    scorer = DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1,), runtime="torch")
    levels = [20 + index % 200 for index in range(400)]
    path = write_clip(tmp_path / "long.mp4", gray(levels, 576, 800), options={"preset": "ultrafast"})
    peaks = []
    for index, (_, scores) in enumerate(score_video(path, scorer, fps=25)):
        assert scores.pyramid.width == 800
        if index in (60, 399):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert index == 399
    assert peaks[1] - peaks[0] < 60
