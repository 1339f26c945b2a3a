"""The engine beyond equal scores: options, precision and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import densescore
from densescore import DensescoreError, DenseScorer
from densescore.models.head import AdaptationHead, HeadFile, save_head
from densescore.network.dense_network import find_device
from densescore.scoring.classify import shared_scorer
from tests.conftest import Toy


def test_the_default_model_recognizes_a_cat_and_a_cup(
    lite0: DenseScorer, cat: NDArray[np.uint8], coffee: NDArray[np.uint8]
) -> None:
    scores = lite0.score(cat)
    assert scores.patch_scores.dtype == torch.float32
    assert scores.top(1)[0].label in {"tabby", "Egyptian cat"}
    cup = lite0.score(coffee)
    assert cup.top(1)[0].label in {"espresso", "cup", "coffee mug"}
    espresso = cup.response_map(["espresso"])[0]
    inside = torch.zeros_like(espresso, dtype=torch.bool)
    inside[20:290, 170:420] = True  # the cup
    assert espresso[inside].mean() > 1.5 * espresso[~inside].mean()


def test_classify_takes_a_name_and_shares_the_scorer(cat: NDArray[np.uint8]) -> None:
    result = densescore.classify(cat, scales=[1, 1.3])
    assert result.model == "lite0"
    assert len(result.levels) == 2
    assert set(result.timings) == {"decode", "pyramid", "trunk", "head"}
    assert shared_scorer("lite0", {"scales": [1, 1.3]}) is shared_scorer("lite0", {"scales": (1, 1.3)})


def test_classify_reloads_a_head_whose_file_has_changed(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    path, labels = tmp_path / "head.safetensors", ("first", "second")
    for winner in (0, 1):
        head = AdaptationHead(1280, 2, width=4)
        head.fcb.bias.data = torch.tensor([50.0, -50.0]).roll(winner)
        save_head(path, HeadFile(head, labels, "lite0", (0.5,) * 3, (0.5,) * 3, 224), overwrite=True)
        assert densescore.classify(cat, path, scales=(1,)).top(1)[0].label == labels[winner]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_gives_float32_probabilities_near_the_exact(dtype: str, cat: NDArray[np.uint8]) -> None:
    exact = DenseScorer("lite0", scales=(1, 1.6)).score(cat)
    rough = DenseScorer("lite0", scales=(1, 1.6), dtype=dtype).score(cat)
    assert rough.patch_scores.dtype == torch.float32
    assert rough.top(1)[0].label == exact.top(1)[0].label
    torch.testing.assert_close(rough.patch_scores, exact.patch_scores, rtol=0, atol=0.15)
    assert not torch.equal(rough.patch_scores, exact.patch_scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_and_floats_are_normalized_alike(dtype: torch.dtype, cat: NDArray[np.uint8]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scorer = DenseScorer(Toy(), mean=mean, std=std, patch_size=20, dtype=dtype)
    expected = torch.from_numpy((cat / 255 - np.array(mean)) / np.array(std)).permute(2, 0, 1)[None]
    for pixels in (cat, (cat / 255).astype(np.float32)):
        level = scorer.normalize(pixels)
        assert level.dtype == dtype
        assert level.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(level.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")
def test_an_apple_gpu_gives_the_same_scores(cat: NDArray[np.uint8]) -> None:
    cpu, mps = (DenseScorer("lite0", scales=(1, 1.3), device=device).score(cat) for device in ("cpu", "mps"))
    torch.testing.assert_close(mps.patch_scores, cpu.patch_scores, rtol=1e-3, atol=1e-5)


def test_a_device_is_chosen_or_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(DensescoreError, match=r"^device 'mps' cannot be used: [^\n]{10,200}$"):
            find_device("mps")
    with pytest.raises(DensescoreError, match="densescore runs on 'cpu', 'cuda' and 'mps' only"):
        find_device("meta")
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=cuda: value)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda value=mps: value)
        assert find_device("auto").type == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 3), (33, 660), (500, 25)])
def test_any_size_works(toy_scorer: DenseScorer, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    scores = toy_scorer.score(image)
    assert scores.response_map(["a"]).shape == (1, *size)
    assert torch.isfinite(scores.response_map()).all()


def test_a_module_is_copied_and_left_as_it_was() -> None:
    module = Toy().train()
    DenseScorer(module, labels=("a", "b", "c"), patch_size=20, dtype="bfloat16")
    assert module.training
    assert next(module.parameters()).dtype == torch.float32


def test_absolute_patch_sizes_reach_the_engine(cat: NDArray[np.uint8]) -> None:
    scorer = DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, patch_sizes=(60, 150))
    boxes = scorer.score(cat).boxes
    sides = {round(side) for side in (boxes[:, 2] - boxes[:, 0]).tolist()}
    assert sides == {60, 150}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0.5}, "k: got 0.5, expected a number from 1 to 10,000"),
        ({"k": float("nan")}, "k: got nan"),
        ({"k": 1e308}, r"k: got 1e\+308"),
        ({"k": "5"}, "k: got '5'"),
        ({"mean": 0.5}, "mean must be a sequence, got 0.5"),
        ({"scales": 2}, "scales must be a sequence, got 2"),
        ({"labels": ("a",)}, "labels: got 1 names for a network of 3 classes"),
        ({"mean": (0.5,)}, "mean must be three finite numbers"),
        ({"std": (1, 0, 1)}, "std must be three finite numbers"),
        ({"device": "tpu"}, "device 'tpu' cannot be used"),
        ({"dtype": "int4"}, "dtype must be 'auto'"),
        ({"scales": ()}, "scales must be one or more"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"patch_size": 5}, r"cannot be run on 5×5 pixels"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        DenseScorer(Toy(), **{"patch_size": 20, **options})  # type: ignore[arg-type]
