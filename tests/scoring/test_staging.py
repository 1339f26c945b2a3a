"""Levels on their way to a GPU: what uses them waits for the copies, and their memory is not given away before."""

from unittest.mock import MagicMock, call

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DenseScorer, score_many
from densescore.scoring import staging
from densescore.scoring.staging import Sheet, Staged
from tests.conftest import Toy

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_device_waits_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MagicMock()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    pixels, mask, cells = (MagicMock() for _ in range(3))
    copied = MagicMock()
    staging._wait(Staged((), (Sheet(pixels, [mask], cells, np.arange(1)),), copied, 0.0), torch.device("cuda"))
    assert stream.mock_calls == [call.wait_event(copied)]
    for tensor in (pixels, mask, cells):
        assert tensor.mock_calls == [call.record_stream(stream)]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stream_on_a_gpu_gives_the_scores_of_a_cpu(dtype: str, coffee: NDArray[np.uint8]) -> None:
    images = [coffee[:height, :width] for height, width in ((60, 80), (80, 60), (120, 161), (33, 90))] * 5
    near, far = (
        DenseScorer(Toy(), patch_size=20, scales=(1, 1.5, 2.3), device=device, dtype=dtype)
        for device in ("cpu", "cuda")
    )
    tolerance = 1e-3 if dtype == "float32" else 3e-2
    for item, image in zip(score_many(images, far, batch=8), images, strict=True):
        assert item.scores is not None, item.error
        expected = near.score(image).patch_scores
        assert expected.std() > 1e-3
        torch.testing.assert_close(item.scores.patch_scores.cpu(), expected, rtol=tolerance, atol=tolerance)
