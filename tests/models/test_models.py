"""Named networks, their weights, and heads that carry their network's name."""

import json
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from densescore import PAPER_SCALES, DensescoreError, DenseScorer
from densescore.models import MODELS, AdaptationHead, Krizhevsky, load_classifier, load_head, save_head
from densescore.models.adaptation import HeadFile
from densescore.models.efficientnet_lite import shipped_weights, timm_name


def test_lite0_weights_map_one_to_one_in_the_order_of_the_layers() -> None:
    mapped = shipped_weights()
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert list(mapped) == list(own)  # the two have the same layer order, so a swapped pair would show
    assert {name: tensor.shape for name, tensor in mapped.items()} == {name: t.shape for name, t in own.items()}
    for name in ("_blocks.99._bn1.weight", "_blocks.0._expand_conv.weight", "_tail.weight", "odd"):
        with pytest.raises(DensescoreError, match=f"unknown tensor: {name}"):
            timm_name(name)


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


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_weights_that_do_not_fit_or_are_not_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.safetensors"
    state = Krizhevsky(classes=7).state_dict()
    state["extra"] = state.pop("features.0.bias")
    state["features.4.weight"] = torch.zeros(2, 2)
    save_file(state, path)
    with pytest.raises(
        DensescoreError, match=r"missing features.0.bias; unexpected extra; features.4.weight has shape"
    ):
        load_classifier("krizhevsky", weights=path)
    with pytest.raises(DensescoreError, match="weights for alexnet does not fit AlexNet: missing"):
        load_classifier("alexnet", weights=path)
    pickled = tmp_path / "evil.pth"
    torch.save(Evil(), pickled)
    with pytest.raises(DensescoreError, match="evil.pth: cannot be read as weights"):
        load_classifier("krizhevsky", weights=pickled)
    assert "executed" not in capsys.readouterr().out
    torch.save([1, 2], pickled)
    with pytest.raises(DensescoreError, match="expected tensors by name"):
        load_classifier("krizhevsky", weights=pickled)
    with pytest.raises(DensescoreError, match="no such weights file"):
        load_classifier("krizhevsky", weights=tmp_path / "none.pth")


def test_models_that_are_not_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="unknown model 'lenet': expected one of lite0, lite1"):
        load_classifier("lenet")
    with pytest.raises(DensescoreError, match="krizhevsky has no published weights"):
        load_classifier("krizhevsky")

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DensescoreError, match=r"alexnet: torchvision could not download.*weights=None"):
        load_classifier("alexnet")


def test_torchvisions_own_loading_code_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where torchvision keeps its downloads is loaded as it would be after a download."""
    import torchvision

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


def test_every_entry_names_its_license_and_origin() -> None:
    for entry in MODELS.values():
        assert entry.license
        assert entry.origin
        assert entry.patch_size in (224, 227, 256)


def test_scales_belong_to_the_entry() -> None:
    assert load_classifier("lite0").scales == PAPER_SCALES[:6]
    assert load_classifier("krizhevsky", weights=None).scales == PAPER_SCALES
    assert DenseScorer("lite0", scales=PAPER_SCALES).scales == PAPER_SCALES


def head_file(backbone: str = "lite0", width: int = 1280) -> HeadFile:
    torch.manual_seed(0)
    head = AdaptationHead(width, 3, width=16)
    return HeadFile(head.eval(), ("cat", "dog", "background"), backbone, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)


def test_a_head_round_trips_and_is_used_where_a_model_name_is(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    path = tmp_path / "head.safetensors"
    written = head_file()
    save_head(path, written)
    read = load_head(path)
    assert (read.labels, read.backbone, read.mean, read.std, read.patch_size) == (
        written.labels, "lite0", written.mean, written.std, 224,
    )  # fmt: skip
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


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_head(path, head_file(width=99))
    with pytest.raises(DensescoreError, match="the head takes 99 features, but the network gives 1280"):
        DenseScorer(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DensescoreError, match="not an adaptation head"):
        load_head(path)
    save_file(head_file().head.state_dict(), path, {"format": "densescore-adaptation-1", "densescore": "{}"})
    with pytest.raises(DensescoreError, match="without a valid 'labels'"):
        load_head(path)
    description = {"labels": ["a"], "backbone": "lite0", "mean": [0, 0, 0], "std": [1, 1, 1], "patch_size": 224}
    save_file(
        head_file().head.state_dict(),
        path,
        {"format": "densescore-adaptation-1", "densescore": json.dumps(description)},
    )
    with pytest.raises(DensescoreError, match="fcb.weight has shape"):
        load_head(path)
    with pytest.raises(DensescoreError, match="no such weights file"):
        load_head(tmp_path / "none.safetensors")
    file = head_file()
    with pytest.raises(DensescoreError, match="labels: got 1 for 3 outputs"):
        save_head(path, HeadFile(file.head, ("a",), "lite0", file.mean, file.std, 224))
