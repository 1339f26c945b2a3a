"""Memory: smaller parts when it runs out, bounded batches of the head, and no growth with the variety of images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densescore import DensescoreError, DenseScorer, DenseScores
from densescore.models.krizhevsky import Krizhevsky
from densescore.scoring import engine, memory
from densescore.scoring.memory import CropBatch, FreedMemory, is_out_of_memory, retry_smaller
from densescore_kernels import grid
from densescore_kernels.response_map import torch_version
from tests.conftest import Toy

SMALLER_PARTS = r"out of memory on an image of 300×451 pixels .* in smaller parts \(.*memory"


def scorer_of(network: str, **options: Any) -> DenseScorer:
    torch.manual_seed(0)
    if network == "toy":
        return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 5), runtime="torch", **options)
    return DenseScorer(Krizhevsky(classes=5, width=64), scales=(1, 2), runtime="torch", **options)


class SmallMemory(torch.nn.Module):
    """A trunk, or a function of crops, that runs out of memory on more than some pixels."""

    def __init__(self, run: Callable[[Tensor], Tensor], limit: float) -> None:
        super().__init__()
        self.run, self.limit, self.sizes = run, limit, list[int]()

    def forward(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) * pixels.shape[2] * pixels.shape[3] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.run(pixels)


@pytest.mark.parametrize(
    ("network", "options"),
    [("toy", {}), ("toy", {"stride": 2}), ("krizhevsky", {})],
    ids=["toy", "finer", "krizhevsky"],
)
def test_a_dense_pass_that_runs_out_of_memory_is_retried_in_smaller_parts(
    network: str, options: dict[str, int], cat: NDArray[np.uint8], tmp_path: Path
) -> None:
    scorer = scorer_of(network, **options)
    whole = scorer.score(cat)
    assert not whole.retried
    largest = max(float(np.prod(whole.pyramid.padded_size(level))) for level in whole.pyramid.levels)
    dense = scorer.dense
    dense.fast_trunk = SmallMemory(dense.fast_trunk, largest / 1.5)
    with pytest.warns(UserWarning, match=SMALLER_PARTS):
        scores = scorer.score(cat)
    assert scores.retried
    torch.testing.assert_close(scores.patch_scores, whole.patch_scores, rtol=1e-4, atol=1e-6)
    scores.save(tmp_path / "scores.safetensors")
    assert DenseScores.load(tmp_path / "scores.safetensors").retried


def test_out_of_memory_even_in_smaller_parts_is_an_error(cat: NDArray[np.uint8]) -> None:
    scorer = scorer_of("toy")
    scorer.dense.fast_trunk = SmallMemory(scorer.dense.trunk, 0)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(DensescoreError, match="even in smaller parts .* use fewer or smaller"),
    ):
        scorer.score(cat)


def test_batches_of_crops_are_halved_until_memory_is_enough(
    cat: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of("toy")
    scorer, copy = scorer.with_scales((1, 1.5)), scorer.with_scales((1, 1.3))
    whole = scorer.score(cat, context="patch")
    embed = SmallMemory(scorer.network.embed_crops, 11 * 20 * 20)
    monkeypatch.setattr(scorer.network, "embed_crops", lambda crops: embed(crops))
    with pytest.warns(UserWarning, match=SMALLER_PARTS) as warned:
        scores = scorer.score(cat, context="patch")
    assert len(warned) == 1
    assert scores.retried
    torch.testing.assert_close(scores.patch_scores, whole.patch_scores, rtol=1e-4, atol=1e-6)
    for later in (scorer, copy):  # the size that fits is remembered
        embed.sizes.clear()
        assert not later.score(cat, context="patch").retried
        assert 5 < max(embed.sizes) <= 11
    embed.limit = 0
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(DensescoreError, match="even in smaller parts .*: one crop is too large"),
    ):
        scorer.score(cat, context="patch")
    assert min(embed.sizes) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def work(size: int) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        retry_smaller(work, (1, 8), "an image", "")


def test_errors_of_real_allocators_are_recognized() -> None:
    for allocate in (lambda: torch.empty(2**58), lambda: np.empty(2**58)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)


def test_a_batch_size_halved_by_another_thread_is_not_raised() -> None:
    batch = CropBatch(224, torch.device("cpu"))
    sizes = batch.sizes()
    assert next(sizes) == 64
    batch.size = 4
    assert [*sizes] == [4, 2, 1]
    assert [*batch.sizes()] == [1]


class LargestProduct(TorchDispatchMode):
    """Rows of the largest matrix product."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "linear" in str(func) or "addmm" in str(func):
            self.rows = max(self.rows, len(result))
        return result


def test_batches_of_the_head_bound_its_memory_and_keep_its_scores(
    toy_scorer: DenseScorer, cat: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = toy_scorer.pyramid(*cat.shape[:2]).levels
    maps = [torch.rand(1, 6, level.rows + 2, level.cols + 2) for level in levels]
    whole = toy_scorer.score_maps(maps, levels)
    assert whole.std() > 1e-3
    per_cell = (2 * toy_scorer.dense.window_width + 2 * 10 + 3) * 4
    for cells in (1, 3, 17, 40, 10**6):  # parts of a row, whole rows, across levels, all at once
        monkeypatch.setattr(engine, "HEAD_BYTES", cells * per_cell)
        with LargestProduct() as largest:
            scores = toy_scorer.score_maps(maps, levels)
        torch.testing.assert_close(scores, whole, rtol=1e-5, atol=1e-7)
        assert min(cells, len(whole)) / 2 < largest.rows <= cells


def test_freed_memory_is_given_back_when_the_process_has_grown() -> None:
    resident = iter([100, 140, 149, 151, 120, 165, 171, 110, 110])
    trims: list[bool] = []
    freed = FreedMemory(lambda: next(resident), lambda: trims.append(True), slack=50)
    counts = []
    for _ in range(9):
        freed.after_image()
        counts.append(len(trims))
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # at 151 > 100 + 50, and at 171 > 120 + 50


def test_caches_are_bounded_for_any_number_of_image_sizes(
    toy_scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = MagicMock(return_value=0)
    monkeypatch.setattr(memory.freed_memory, "_resident", resident)
    for height, width in np.random.default_rng(0).integers(20, 60, (40, 2)):
        toy_scorer.score(np.zeros((height, width, 3), np.uint8)).response_map("a")
    assert resident.call_count == 40
    for module in (torch_version, grid):
        caches = [value for value in vars(module).values() if hasattr(value, "cache_info")]
        assert caches
        for cache in caches:
            assert cache.cache_info().maxsize is not None
            assert cache.cache_info().currsize <= cache.cache_info().maxsize
