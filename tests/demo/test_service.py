"""The limits of what a stranger may ask for."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from densescore import DensescoreError, DenseScorer
from densescore.demo.decoder import Decoder
from densescore.demo.limits import BusyError, Limits, TooLargeError, TooSlowError
from densescore.demo.service import Answer, Service
from densescore.geometry import Pyramid
from densescore.results.best_patches import best_patches
from densescore.results.scores import DenseScores


def png(height: int = 30, width: int = 40, seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()


def get_scores(answer: Answer) -> DenseScores:
    return answer.scores


def test_the_scorers_own_scores(service: Service, toy: DenseScorer) -> None:
    answer = service.score(png(), "toy")
    assert answer.pixels.shape == (30, 40, 3)
    assert torch.equal(answer.scores.patch_scores, toy.score(png()).patch_scores)


def test_what_is_too_large_or_no_image(service: Service) -> None:
    with pytest.raises(TooLargeError, match=r"has 200,001 bytes; at most 200,000"):
        service.score(bytes(200_001), "toy")
    flat = io.BytesIO()
    Image.new("L", (2000, 1000)).save(flat, "png")  # small as a file
    with pytest.raises(TooLargeError, match=r"2000×1000 = 2,000,000 pixels; at most 1,000,000"):
        service.score(flat.getvalue(), "toy")
    for data in (b"", b"not a picture", png()[:200]):
        with pytest.raises(DensescoreError, match=f"image of {len(data)} bytes: "):
            service.score(data, "toy")
    with pytest.raises(DensescoreError, match="no model 'other': there are toy"):
        service.score(png(), "other")


def test_a_path_is_not_read(service: Service) -> None:
    with pytest.raises(DensescoreError, match="not an image"):
        service.score(__file__.encode(), "toy")


def test_one_at_a_time_few_waiting_and_none_forever(toy: DenseScorer, decoder: Decoder) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow() -> DenseScorer:
        begun.set()
        assert go.wait(30)
        return toy

    service = Service({"slow": slow}, Limits(seconds=30, waiting=1), decoder)
    first = service.submit(png(), "slow", get_scores)
    assert begun.wait(30)
    waits = service.submit(png(), "slow", get_scores)
    with pytest.raises(BusyError, match="1 images are waiting already"):
        service.submit(png(), "slow", get_scores)
    assert service.queued == 2
    assert waits.cancel()  # who no longer waits leaves the place to another
    second = service.submit(png(), "slow", get_scores)
    go.set()
    assert first.result(30).labels == second.result(30).labels == ("a", "b", "c")
    assert service.submit(png(), "slow", get_scores).result(30).labels == ("a", "b", "c")  # places are free again
    service.close()


def test_a_late_answer_is_not_waited_for_and_late_work_not_begun(toy: DenseScorer, decoder: Decoder) -> None:
    go = threading.Event()

    def slow() -> DenseScorer:
        assert go.wait(30)
        return toy

    service = Service({"slow": slow}, Limits(seconds=0.2), decoder)
    first = service.submit(png(), "slow", get_scores)
    with pytest.raises(TooSlowError, match=r"not scored within 0\.2 seconds"):
        service.score(png(), "slow")
    go.set()
    with pytest.raises(TooSlowError, match=r"not scored within 0\.2 seconds"):
        first.result(30)
    service.close()


@pytest.mark.parametrize(("height", "width"), [(20, 20_000), (1, 900_000), (900_000, 1)])
def test_too_many_patches_are_refused_before_the_network_runs(
    toy: DenseScorer, decoder: Decoder, height: int, width: int
) -> None:
    service = Service({"toy": lambda: toy}, Limits(pixels=1_000_000, cells=1000), decoder)
    flat = io.BytesIO()
    Image.new("L", (width, height)).save(flat, "png")
    with pytest.raises(TooLargeError, match=f"{width}×{height} pixels has more than 1,000 patches"):
        service.score(flat.getvalue(), "toy")
    service.close()


def test_the_best_patches_share_the_image_score() -> None:
    pyramid = Pyramid.of(224, 288, scales=(1,))
    scores = DenseScores(torch.tensor([[0.2], [0.4], [0.1]]), ("cat",), pyramid, k=2)
    best = best_patches(scores, "cat", 2)
    assert [patch.box[0] for patch in best] == [32, 0]
    np.testing.assert_allclose([patch.share for patch in best], [16 / 21, 4 / 21], rtol=1e-6)
    tiny = DenseScores(torch.tensor([[1e-30], [1e-30], [0]]), ("cat",), pyramid, k=20)
    assert [patch.share for patch in best_patches(tiny, "cat")] == [0.5, 0.5, 0]
