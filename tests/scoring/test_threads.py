"""Scorers in many threads: the same scores as in one thread, and no side effects."""

import importlib.util
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import densescore
from densescore import DensescoreError, DenseScorer
from densescore.models.registry import MODELS
from densescore.network.cpu.openvino import OpenVINOTrunk
from densescore.network.graph import symbolic_trace
from densescore.scoring import classify
from tests.conftest import Toy

THREADS = 8
Item = TypeVar("Item")

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra densescore[openvino]"
)


def at_once(work: Callable[[int], Item], threads: int = THREADS) -> list[Item]:
    """``work(0)``, ``work(1)``, … in threads that all begin at the same moment."""
    start = threading.Barrier(threads)

    def run(index: int) -> Item:
        start.wait()
        return work(index)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


@pytest.fixture(scope="module")
def images(cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Photographs of one size and of others."""
    same_size = [cat[:224, :260], cat[30:254, 150:410], coffee[:224, :260]]
    return [*same_size, coffee[:150, :333], cat[:61, :40], coffee[:300, :230]]


@pytest.mark.parametrize(
    ("runtime", "dtype"),
    [
        ("torch", "float32"),
        ("torch", "bfloat16"),
        pytest.param("openvino", "float32", marks=needs_openvino),
        pytest.param("openvino", "bfloat16", marks=needs_openvino),
    ],
)
@pytest.mark.parametrize("model", ["toy", "lite0"])
def test_threads_get_the_scores_of_one_thread(
    model: str, runtime: Any, dtype: str, images: list[NDArray[np.uint8]], toy: None
) -> None:
    scales = (1, 2.2) if model == "toy" else (1,)
    try:
        scorer = DenseScorer(model, runtime=runtime, dtype=dtype, scales=scales)
    except DensescoreError as error:
        if "deviate" in str(error):  # a processor without bfloat16, on which OpenVINO rounds otherwise
            pytest.skip(str(error))
        raise
    orders = [np.random.default_rng(thread).permutation(len(images)) for thread in range(THREADS)]
    found = at_once(lambda thread: [scorer.score(images[index]).patch_scores for index in orders[thread]])
    alone = [scorer.score(image).patch_scores for image in images]  # last, so that the threads fill the caches
    assert all(scores.std() > 1e-4 for scores in alone)
    for order, several in zip(orders, found, strict=True):
        for index, scores in zip(order, several, strict=True):
            assert torch.equal(scores, alone[index])
    if isinstance(scorer.network.fast_trunk, OpenVINOTrunk):
        assert 1 <= len(scorer.network.fast_trunk.idle) <= THREADS


def test_the_first_calls_of_classify_share_one_scorer(images: list[NDArray[np.uint8]], toy: None) -> None:
    built = []
    entry = MODELS["toy"]

    def build(weights: dict[str, torch.Tensor] | None) -> nn.Module:
        built.append(weights)
        time.sleep(0.05)
        return entry.build(weights)

    MODELS["toy"] = replace(entry, build=build)
    found = at_once(lambda index: densescore.classify(images[index % 3], "toy", scales=(1,)).patch_scores)
    assert len(built) == 1
    scorer = DenseScorer("toy", scales=(1,))
    for index, scores in enumerate(found):
        assert torch.equal(scores, scorer.score(images[index % 3]).patch_scores)


@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_scorers_can_be_made_in_many_threads_without_side_effects(
    runtime: Any, images: list[NDArray[np.uint8]]
) -> None:
    before = nn.Module.__call__, nn.Module.__getattr__
    plain, pixels = Toy().eval(), torch.rand(2, 3, 20, 20)
    expected = plain(pixels)
    calls: list[bool] = []

    def work(index: int) -> torch.Tensor | None:
        if index % 2:  # a network of the user runs while others are traced
            calls.extend(torch.equal(plain(pixels), expected) for _ in range(200))
            return None
        if index == 4:  # one that cannot be traced
            with pytest.raises(DensescoreError, match="cannot be traced"):
                DenseScorer(Untraceable(), patch_size=20)
        return DenseScorer(Toy(), patch_size=20, scales=(1, 1.3), runtime=runtime).score(images[0]).patch_scores

    found = [scores for scores in at_once(work) if scores is not None]
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
    assert len(calls) == 200 * THREADS // 2
    assert all(calls)
    assert all(torch.equal(scores, found[0]) for scores in found)
    assert torch.equal(plain(pixels), expected)
    assert len(symbolic_trace(plain).graph.nodes) > 5


class Untraceable(nn.Module):
    """Branches on the values of its input."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels if pixels.sum() > 0 else -pixels


def test_an_error_while_loading_reaches_waiting_threads_and_is_not_cached(toy: None, cat: NDArray[np.uint8]) -> None:
    def fail(index: int) -> str:
        with pytest.raises(DensescoreError, match="k: got 0"):
            densescore.classify(cat, "toy", k=0)
        return "refused"

    assert at_once(fail) == ["refused"] * THREADS
    assert not classify._scorers
    assert densescore.classify(cat, "toy", k=1).k == 1


def test_the_cache_of_scorers_is_bounded(toy: None) -> None:
    first = classify.shared_scorer("toy", {"k": 1})
    for k in range(2, classify.MAX_SCORERS + 2):
        classify.shared_scorer("toy", {"k": k})
        assert len(classify._scorers) <= classify.MAX_SCORERS
    assert classify.shared_scorer("toy", {"k": 1}) is not first
