"""Faults from outside: full disks, broken and hostile files."""

import io
import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from densescore import DensescoreError, DenseScorer
from densescore.io.files import atomic_write
from densescore.models.registry import MODELS
from densescore.models.weights import read_weights
from tests import fuzz


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
    extras = [kind for kind, package in (("page", "fastapi"), ("video", "av")) if find_spec(package) is not None]
    try:
        found = fuzz.run_some(1_000_000, 300)
    finally:
        MODELS.pop("toy", None)
    assert {kind for kind in found if kind.endswith("refused")} == {
        f"{kind}: refused" for kind in ("image", "array", "geometry", "command", "weights", "data_set", *extras)
    }
    assert sum("valid" in kind for kind in found) >= 4, os.linesep.join(found)
