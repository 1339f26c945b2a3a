"""A stream of images or frames holds a few of them, keeps their order and survives bad ones."""

import itertools
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DensescoreError, DenseScorer, DenseScores, score_many, score_video
from densescore.io.video import write_video
from densescore.scoring import stream
from densescore.scoring.scorer import Context
from tests.conftest import Toy

needs_av = pytest.mark.skipif(find_spec("av") is None, reason="needs the extra densescore[video]")


def test_the_same_scores_in_the_same_order(scorer: DenseScorer, pictures: list[str]) -> None:
    items = list(score_many(pictures, scorer, decoders=3))
    assert [item.source for item in items] == pictures
    assert [index for index, item in enumerate(items) if item.error] == [3, 7]
    assert items[3].scores is None
    assert "03.png: not an image" in str(items[3].error)
    for item in items:
        if item.scores is not None:
            assert torch.equal(item.scores.patch_scores, scorer.score(item.source).patch_scores)


@pytest.mark.parametrize(("ahead", "batch", "expected"), [(1, 1, 5), (3, 1, 7), (1, 2, 6), (3, 4, 10)])
def test_a_stream_without_end_is_read_only_as_far_as_needed(
    scorer: DenseScorer, ahead: int, batch: int, expected: int
) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield np.full((24, 30, 3), taken % 256, np.uint8)

    items = list(itertools.islice(score_many(endless(), scorer, ahead=ahead, batch=batch), 5))
    assert len(items) == 5
    assert taken == expected


def test_decoding_overlaps_scoring(scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next image is read, in another thread, before this one's scores are asked for."""
    read = threading.Event()
    threads = set()

    def reading(source: object) -> NDArray[np.uint8]:
        threads.add(threading.current_thread())
        if source == "second":
            read.set()
        return np.zeros((24, 30, 3), np.uint8)

    monkeypatch.setattr(stream, "read_image", reading)
    waited: list[bool] = []
    score = scorer.score

    def waiting(pixels: NDArray[np.uint8], context: Context | None) -> DenseScores:
        waited.append(read.wait(20))
        return score(pixels, context=context)

    monkeypatch.setattr(scorer, "score", waiting)
    first = next(score_many(["first", "second"], scorer, batch=1))
    assert first.scores, first.error
    assert waited == [True]  # the event came in time
    assert threading.current_thread() not in threads


def test_stopping_early_ends_the_threads(scorer: DenseScorer) -> None:
    before = threading.active_count()
    images = score_many(itertools.repeat(np.zeros((24, 30, 3), np.uint8)), scorer, decoders=2)
    next(images)
    assert threading.active_count() > before
    images.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_unforeseen_failure_is_an_error_of_its_image(scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pixels: object, context: str) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(scorer, "score", fail)
    (item,) = score_many([np.zeros((24, 30, 3), np.uint8)], scorer)
    assert item.error == "MemoryError: no room"


def test_arguments_are_checked_at_once(scorer: DenseScorer) -> None:
    for name in ("ahead", "batch", "decoders"):
        with pytest.raises(DensescoreError, match=f"{name} must be at least 1, got 0"):
            score_many([], scorer, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(DensescoreError, match="has its options already, got also scales"):
        score_many([], scorer, scales=(1,))
    with pytest.raises(DensescoreError, match="unknown model 'lenet'"):
        score_many([], "lenet")


@needs_av
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


@needs_av
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


@needs_av
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Of 400 frames of 1.4 MB, 550 MB in all, no more is held than of the first 60."""
    resource = pytest.importorskip("resource")  # not on Windows
    from tests.io.clips import gray, write_clip

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
