"""Files of heads: each field is checked, and a head is used only on the weights that it was trained on."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from densescore import DensescoreError, DenseScorer
from densescore.models.head import AdaptationHead, HeadFile, load_head, save_head
from tests.conftest import Toy

GOOD: dict[str, Any] = {
    "labels": ["cat", "dog"], "backbone": "toy", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "patch_size": 20,
    "activation": "sigmoid", "scales": [1, 1.5], "k": 3, "training": {"seed": 0},
}  # fmt: skip

REQUIRED = ("labels", "backbone", "mean", "std", "patch_size")
NUMBERS: list[Any] = ["text", None, True, {}, [[]], float("nan"), float("inf"), 10**400]
WRONG: dict[str, list[Any]] = {
    "labels": [[], "cat", None, 3, {"cat": 1}, ["cat", 3], ["cat", None], ["cat", "cat"], ["cat", ""], [["a"], "dog"]],
    "backbone": ["", None, 3, ["toy"], {}],
    "mean": [[0, 0], [0, 0, 0, 0], 0.5, "abc", {"r": 1}, *([0, 0, value] for value in NUMBERS), None],
    "std": [[0, 1, 1], [1, -1, 1], [1, 1], 0.5, *([1, 1, value] for value in NUMBERS), None],
    "patch_size": [0, -1, 224.0, 4097, 10**12, [224], "224", *NUMBERS],
    "activation": ["relu", "", 3, True, ["softmax"], {}, None],
    "scales": [[], [0], [-1], 2, "1,2", [1] * 1001, {"a": 1}, *([value] for value in NUMBERS)],
    "k": [0.5, 0, -3, [5], *NUMBERS],
    "training": [None, [], "text", 3, {"backbone_digest": 3}, {"frozen_digest": ["x"]}],
}


def write(path: Path, description: Any, tensors: dict[str, Tensor] | None = None) -> Path:
    text = description if isinstance(description, str) else json.dumps(description)
    state = AdaptationHead(10, 2, width=4).state_dict() if tensors is None else tensors
    save_file(state, path, {"format": "densescore-adaptation-1", "densescore": text})
    return path


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = load_head(write(tmp_path / "head.safetensors", GOOD))
    assert (file.labels, file.k, file.scales, file.activation) == (("cat", "dog"), 3.0, (1.0, 1.5), "sigmoid")
    file = load_head(write(tmp_path / "head.safetensors", {name: GOOD[name] for name in REQUIRED}))
    assert (file.k, file.scales, file.activation, file.training) == (5.0, None, "softmax", {})


@pytest.mark.parametrize("field", GOOD)
def test_every_field_of_a_wrong_kind_is_named(field: str, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    message = f"head.safetensors: .*without a valid '{field}': expected .*, got"
    for value in WRONG[field]:
        with pytest.raises(DensescoreError, match=message) as caught:
            load_head(write(path, {**GOOD, field: value}))
        assert len(str(caught.value)) < 400
    if field in REQUIRED:
        with pytest.raises(DensescoreError, match=f"{message} nothing"):
            load_head(write(path, {name: value for name, value in GOOD.items() if name != field}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ('{"training": ' + '{"a": ' * 100_000 + "0" + "}" * 100_001, "not JSON"),
        ("[1, 2]", "must be an object"),
        ("null", "must be an object"),
        (json.dumps({**GOOD, "patch_size": 0}).replace('"patch_size": 0', '"patch_size": 1e400'), "'patch_size'"),
        (json.dumps({**GOOD, "k": 0}).replace('"k": 0', '"k": 1e400'), "'k'"),
        (json.dumps({**GOOD, "k": 0}).replace('"k": 0', '"k": ' + "9" * 5000), "not JSON"),
        (json.dumps({**GOOD, "labels": [f"c{index}" for index in range(20_000)]}), "fcb.weight has shape"),
        (json.dumps({**GOOD, "labels": ["cat"] * 20_000}), "'labels'"),
    ],
)
def test_broken_descriptions_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match=message):
        load_head(write(tmp_path / "head.safetensors", text))


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = {**AdaptationHead(10, 2, width=4).state_dict()}
    state |= {name.replace("_", ".", 1): tensor for name, tensor in tensors.items() if tensor is not None}
    return {name: tensor for name, tensor in state.items() if tensors.get(name.replace(".", "_"), 0) is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fca_weight": torch.zeros(0, 10), "fca_bias": torch.zeros(0)}, "both at least 1"),
        ({"fca_weight": torch.zeros(4, 0)}, "both at least 1"),
        ({"fca_weight": torch.zeros(4)}, r"fca.weight must have shape \(width, features\), .* got \(4,\)"),
        ({"fca_weight": torch.zeros(4, 10, 1)}, "fca.weight must have shape"),
        ({"fca_weight": None}, "fca.weight must have shape .* got none"),
        ({"fca_bias": torch.zeros(())}, r"fca.bias has shape \(\), expected \(4,\)"),
        ({"fcb_bias": None}, "missing fcb.bias"),
        ({"fcb_weight": torch.zeros(3, 4), "fcb_bias": torch.zeros(3)}, "fcb.weight has shape"),
        ({"fcc_weight": torch.zeros(3)}, "unexpected fcc.weight"),
        ({"fcb_weight": torch.zeros(2, 4, dtype=torch.int64)}, "fcb.weight must hold floating-point numbers"),
        ({"fcb_weight": torch.full((2, 4), torch.nan)}, "8 of 8 values of fcb.weight are not finite"),
        ({"fca_bias": torch.tensor([0, torch.inf, 0, 0])}, "1 of 4 values of fca.bias are not finite"),
    ],
)  # fmt: skip
def test_tensors_of_other_shapes_are_refused(tensors: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match=message):
        load_head(write(tmp_path / "head.safetensors", GOOD, changed(**tensors)))


def test_many_classes_are_read_quickly(toy: str, tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    labels = [f"class number {index}" for index in range(20_000)]
    state = AdaptationHead(10, 20_000, width=4).state_dict()
    path = write(tmp_path / "head.safetensors", {**GOOD, "labels": labels}, state)
    start = time.process_time()
    scorer = DenseScorer(path, runtime="torch")
    assert time.process_time() - start < 10  # comparing each name with each other took half a minute
    assert scorer.score(cat[:40, :40]).labels[-1] == labels[-1]


def test_a_head_is_refused_on_other_weights(toy: str, tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    path, mine = tmp_path / "head.safetensors", tmp_path / "mine.pth"
    torch.save({name: tensor * 1.5 for name, tensor in Toy().state_dict().items()}, mine)
    file = HeadFile(AdaptationHead(10, 2, width=4).eval(), ("a", "b"), toy, (0.5,) * 3, (0.5,) * 3, 20, scales=(1.0,))
    for weights, other in (("default", mine), (mine, "default")):
        record = {"backbone_digest": DenseScorer(toy, weights=weights, runtime="torch").backbone_digest}
        save_head(path, replace(file, training=record), overwrite=True)
        with pytest.raises(DensescoreError, match="head.safetensors: the head was trained on other weights of toy"):
            DenseScorer(path, weights=other)
        for dtype in ("auto", "bfloat16"):  # the precision of the scoring is free
            scores = DenseScorer(path, weights=weights, dtype=dtype, runtime="torch").score(cat[:40, :40])
            assert scores.labels == ("a", "b")
        save_head(path, file, overwrite=True)
        DenseScorer(path, weights=other, runtime="torch")  # a file without a digest: nothing to compare
