"""A stream holds a few images, keeps their order and survives bad ones."""

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DensescoreError, DenseScorer, DenseScores, score_many
from densescore.scoring import stream
from densescore.scoring.fingerprint import Context


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
    with pytest.raises(DensescoreError, match="ahead must be at least 1"):
        score_many([], scorer, ahead=0)
    with pytest.raises(DensescoreError, match="has its options already, got scales"):
        score_many([], scorer, scales=(1,))
    with pytest.raises(DensescoreError, match="unknown model 'lenet'"):
        score_many([], "lenet")
