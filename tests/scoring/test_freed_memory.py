"""Memory does not grow with the variety of images."""

import numpy as np
import pytest

from densescore import DenseScorer
from densescore.scoring import freed_memory
from densescore.scoring.freed_memory import FreedMemory
from densescore_kernels import grid
from densescore_kernels.response_map import torch_version


def test_freed_memory_is_given_back_when_the_process_has_grown() -> None:
    held = iter([100, 140, 149, 151, 120, 165, 171, 110, 110])
    trims: list[bool] = []
    memory = FreedMemory(lambda: next(held), lambda: trims.append(True), slack=50)
    counts = []
    for _ in range(9):
        memory.after_image()
        counts.append(len(trims))
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # at 151 > 100 + 50, and at 171 > 120 + 50


def test_caches_are_bounded_however_many_sizes_come(toy_scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def resident() -> int:
        asked.append(1)
        return 0

    monkeypatch.setattr(freed_memory.freed_memory, "_resident", resident)
    sizes = np.random.default_rng(0).integers(20, 60, (40, 2))
    for height, width in sizes:
        toy_scorer.score(np.zeros((height, width, 3), np.uint8)).response_map("a")
    assert len(asked) == 40
    for cache in (vars(torch_version), vars(grid)):
        caches = [value for value in cache.values() if hasattr(value, "cache_info")]
        assert caches
        for cached in caches:
            assert cached.cache_info().maxsize is not None
            assert cached.cache_info().currsize <= cached.cache_info().maxsize
