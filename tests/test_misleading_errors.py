"""Mistakes that are easily made: the error names what was got, and what to do."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from densescore import DensescoreError, DenseScorer, DenseScores, classify, score_many
from densescore.errors import DensescoreWarning
from densescore.geometry import Pyramid
from densescore.models.weights import read_weights
from densescore.results.patches import Patch
from densescore.scoring.options import ScorerOptions, StreamOptions
from tests.cli.runner import refuse
from tests.conftest import Toy


class Segmenter(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": x, "aux": x}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a photograph, a file of weights and a pickled module."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("photo.jpg")
    Path("head.safetensors").touch()
    torch.save(nn.Linear(2, 2), "module.pth")
    return tmp_path


SCORES = DenseScores(torch.tensor([[0.8], [0.7]]), ("cat",), Pyramid.of(224, 256, scales=(1,)))

MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: read_weights("photo.jpg"), r"photo.jpg: cannot be read as weights .*: it holds no tensors$"),
    (lambda: read_weights("module.pth"), r"module.pth: .* never run; save module.state_dict\(\)$"),
    (lambda: read_weights("head.safetensor"), r"no such weights file; did you mean head.safetensors\?"),
    (lambda: DenseScorer("head.safetensor"), r"unknown model 'head.safetensor'.*; did you mean head.safetensors\?"),
    (lambda: DenseScorer(Segmenter(), patch_size=32), r"and returns a dict of 'out', 'aux'$"),
    (lambda: DenseScorer(nn.Conv2d(3, 2, 1), patch_size=32), r"and returns a tensor of shape \[1, 2, 32, 32\]$"),
    (lambda: DenseScorer(Toy(), patch_size=20, device="mps"), r"'mps' cannot be used: this machine has no Apple GPU"),
    (lambda: DenseScorer("lite0", scales="1,2"), r"scales must be a sequence of numbers, got '1,2'"),  # type: ignore[arg-type]
    (lambda: DenseScorer("lite0", mean=[1, "x", 2]), r"mean must be a sequence of numbers, got \[1, 'x', 2\]"),  # type: ignore[list-item]
    (lambda: classify("photo.jpg", scale=2), r"scale: no such option of a scorer; did you mean scales\?"),  # type: ignore[call-arg]
    (lambda: classify("https://x.org/cat.jpg"), r"cat.jpg: is on the web: it must be downloaded first"),
    (lambda: SCORES.locate(504), r"a class is a name, such as 'cat', got 504"),  # type: ignore[arg-type]
    (lambda: SCORES.select(["cat", 3]), r"a class is a name, such as 'cat', got 3"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_the_error_says_what_to_do(mistake: Callable[[], Any], message: str, folder: Path) -> None:
    with pytest.raises(DensescoreError, match=message) as caught:
        mistake()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classify", "https://x.org/cat.jpg"), "https://x.org/cat.jpg: is on the web: it must be downloaded first"),
        (("score", "https://x.org/cat.jpg", "-o", "x.parquet"), "cat.jpg: is on the web"),
        (("classify", "foto.jpg"), "foto.jpg: no such file or folder; did you mean photo.jpg?"),
        (("report", "results.csv"), "results.csv: expected images, or the table (.parquet)"),
        (("models", "resnt"), "resnt: no network has this in its name"),
    ],
)
def test_so_does_the_commands(words: tuple[str, ...], message: str, folder: Path) -> None:
    refuse(*words, message=message)


def test_a_guessed_patch_size_is_told() -> None:
    with pytest.warns(DensescoreWarning, match="patch_size is not given, and 224 pixels are taken"):
        DenseScorer(nn.Sequential(nn.Conv2d(3, 2, 32, 32), nn.Flatten(), nn.Linear(98, 2)), labels=("a", "b"))


def test_a_patch_is_printed_in_a_line() -> None:
    assert repr(Patch((0.0, 0.0, 10.0, 20.5), 1.3, torch.rand(1000))) == (
        "Patch(box=(0.0, 0.0, 10.0, 20.5), scale=1.3, values=[1,000 numbers])"
    )


def test_options_are_the_scorers() -> None:
    assert {*ScorerOptions.__annotations__} == {*inspect.signature(DenseScorer).parameters} - {"model"}
    assert {*StreamOptions.__annotations__} >= {*inspect.signature(score_many).parameters} - {
        "images",
        "model",
        "options",
    }


@pytest.mark.parametrize(
    "words",
    [
        "heatmap gone.jpg -o taken", "score gone -o taken.parquet", "report gone -o taken.html",
        "export gone.safetensors -o taken.onnx", "train --data gone -o taken.safetensors",
        "check --data gone -o taken.csv", "huge gone.tif -o taken", "index gone -o taken",
        "find gone --like photo.jpg --csv taken.csv",
        "evaluate --data gone --model head.safetensors -o taken", "labels x --data gone -o taken.png",
        "tune-k --data gone --model head.safetensors -o taken.safetensors",
        "convert-caffe gone.onnx -o taken.safetensors",
        "evaluate-actions --data gone --model head.safetensors -o taken",
    ],
)  # fmt: skip
def test_a_missing_input_is_named_before_an_output_that_is_there(words: str, folder: Path) -> None:
    for name in (
        "taken.parquet",
        "taken.html",
        "taken.onnx",
        "taken.safetensors",
        "taken.csv",
        "taken.png",
        "taken/mine",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    refuse(*words.split(), message="error: gone")
