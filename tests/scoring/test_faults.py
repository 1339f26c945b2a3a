"""What goes wrong outside: memory that runs out, full disks, broken and hostile files."""

import io
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from densescore import DensescoreError, DenseScorer, DenseScores
from densescore.io.files import atomic_write
from densescore.models import MODELS, Krizhevsky
from densescore.models.weights import read_weights
from densescore.scoring.out_of_memory import is_out_of_memory
from tests import fuzz
from tests.conftest import Toy


class SmallMemory(torch.nn.Module):
    """A trunk that runs out of memory on more than some pixels."""

    def __init__(self, trunk: torch.nn.Module, most: float) -> None:
        super().__init__()
        self.trunk, self.most = trunk, most

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.shape[2] * pixels.shape[3] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.trunk(pixels)


def scorer_of(network: str, **options: Any) -> DenseScorer:
    torch.manual_seed(0)
    if network == "toy":
        return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 5), runtime="torch", **options)
    return DenseScorer(Krizhevsky(classes=5, width=64), scales=(1, 3), runtime="torch", **options)


@pytest.mark.parametrize(
    ("network", "options", "context"),
    [("toy", {}, "image"), ("toy", {"stride": 2}, "image"), ("krizhevsky", {}, "image"), ("toy", {}, "patch")],
)
def test_out_of_memory_is_answered_with_smaller_parts_once_and_said(
    network: str,
    options: dict[str, int],
    context: Any,
    cat: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    scorer = scorer_of(network, **options)
    whole = scorer.score(cat, context=context)
    assert not whole.retried
    if context == "patch":
        first = iter([torch.OutOfMemoryError("out of memory")])
        embed, whole_batch = scorer.network.embed_crops, scorer._crop_batch.size

        def short_of_memory(crops: torch.Tensor) -> torch.Tensor:
            for error in first:
                raise error
            assert len(crops) <= whole_batch // 2
            return embed(crops)

        monkeypatch.setattr(scorer.network, "embed_crops", short_of_memory)
    else:
        pyramid = whole.pyramid
        most = max(np.prod(pyramid.padded_size(level)) for level in pyramid.levels) / 1.5
        dense = scorer.dense
        dense.fast_trunk = SmallMemory(dense.fast_trunk, float(most))
    with pytest.warns(UserWarning, match=r"out of memory on an image of 300×451 pixels .* in smaller parts \(.*memory"):
        scores = scorer.score(cat, context=context)
    assert scores.retried
    torch.testing.assert_close(scores.patch_scores, whole.patch_scores, rtol=1e-4, atol=1e-6)
    scores.save(tmp_path / "scores.safetensors")
    assert DenseScores.load(tmp_path / "scores.safetensors").retried


def test_out_of_memory_in_small_parts_too_is_an_error(cat: NDArray[np.uint8]) -> None:
    scorer = scorer_of("toy")
    network = scorer.dense
    network.fast_trunk = SmallMemory(network.trunk, 0)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(DensescoreError, match="in small parts, too .* use fewer or smaller"),
    ):
        scorer.score(cat)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    cat: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of("toy")

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scorer.network.fast_trunk, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        scorer.score(cat)


def test_what_allocators_raise_is_known() -> None:
    for too_much in (lambda: torch.empty(2**58), lambda: np.empty(2**58)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            too_much()
        assert is_out_of_memory(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which refuses writes as a full disk does")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    def write_safetensors(path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for write in (lambda path: path.write_text("something"), write_safetensors):
        with (
            pytest.raises(DensescoreError, match=r"file: cannot be written: .*No space left"),
            atomic_write(tmp_path / "file") as temporary,
        ):
            temporary.symlink_to("/dev/full")
            write(temporary)
        assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path, toy_scorer: DenseScorer, cat: NDArray[np.uint8]) -> None:
    (tmp_path / "file").touch()
    scores = toy_scorer.score(cat[:40, :40])
    for place in (tmp_path / "file" / "scores.safetensors", Path("/proc/scores.safetensors")):
        with pytest.raises(DensescoreError, match=f"{place}: cannot be written"):
            scores.save(place)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_weights_files_are_never_executed(suffix: str, writer: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = {"features.0.weight": fuzz.Bomb(mark)}
    file = io.BytesIO()
    torch.save(bomb, file) if writer == "torch" else pickle.dump(bomb, file)
    pickled = file.getvalue()
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickled)
    with pytest.raises(DensescoreError, match="cannot be read"):
        read_weights(path)
    assert not mark.exists()
    if writer == "pickle":
        pickle.loads(pickled)
        assert mark.exists()  # it would have been


def test_some_malformed_inputs() -> None:
    """A small part of ``python -m tests.fuzz``, which draws 20,000."""
    demo = find_spec("fastapi") is not None
    try:
        found = fuzz.run_some(1_000_000, 300)
    finally:
        MODELS.pop("toy", None)
    assert {kind for kind in found if kind.endswith("refused")} == {
        f"{kind}: refused"
        for kind in ("image", "array", "geometry", "command", "weights", "data_set", *(["page"] if demo else []))
    }
    assert sum("valid" in kind for kind in found) >= 4, os.linesep.join(found)
