"""Networks by the names of timm and torchvision, weights as training scripts leave them, labels from files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from densescore import DensescoreError, DenseScorer
from densescore.models.head import AdaptationHead, HeadFile, save_head
from densescore.models.labels import imagenet_labels
from densescore.models.registry import MODELS, all_names, find_entry, load_classifier
from densescore.models.weights import read_labels, read_weights

VIT, CONV = "timm:test_vit.r160_in1k", "timm:test_resnet.r160_in1k"


@pytest.mark.parametrize(
    ("name", "patch", "mean"),
    [
        ("timm:resnet50.a1_in1k", 224, (0.485, 0.456, 0.406)),
        ("timm:resnet50", 224, (0.485, 0.456, 0.406)),
        ("timm:vit_base_patch16_384.augreg_in21k_ft_in1k", 384, (0.5, 0.5, 0.5)),
        ("timm:vit_small_patch14_dinov2.lvd142m", 518, (0.485, 0.456, 0.406)),  # its side is fixed
        ("timm:tf_efficientnet_lite2.in1k", 288, (0.5, 0.5, 0.5)),  # 260, to whole strides
        ("torchvision:convnext_tiny", 224, (0.485, 0.456, 0.406)),
        ("torchvision:inception_v3", 320, (0.485, 0.456, 0.406)),
        ("torchvision:vit_h_14", 518, (0.485, 0.456, 0.406)),
    ],
)
def test_preprocessing_is_the_collections_own(name: str, patch: int, mean: tuple[float, ...]) -> None:
    entry = find_entry(name)
    assert (entry.patch_size, entry.mean) == (patch, mean)
    assert entry.license
    assert entry.origin


def test_all_names_can_be_found() -> None:
    names = list(all_names())
    assert {"lite0", "lite1", "lite2", "timm:resnet50.a1_in1k", "torchvision:convnext_tiny"} <= set(names)
    assert len(names) == len(set(names)) > 1000
    for name in [*MODELS, *names[::37]]:
        entry = find_entry(name)
        assert entry.published is not None or name.startswith("krizhevsky"), name
        assert entry.license
        assert entry.origin


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt50", "timm has no network 'resnt50'; did you mean resnet50"),
        ("timm:resnet50.no_such_tag", "timm has no network 'resnet50.no_such_tag'; did you mean resnet50"),
        ("torchvision:convnext_tin", "did you mean convnext_tiny"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no network"),  # not a classifier
        ("resnet50", "unknown model 'resnet50'.*did you mean torchvision:resnet50, timm:resnet50"),
        ("lite3", "unknown model 'lite3'.*did you mean lite"),
        ("timm:", "timm has no network ''; `densescore models --all` lists them$"),
        ("hub:resnet50", "unknown model 'hub:resnet50': expected one of lite0.*timm:NAME, torchvision:NAME"),
        ("krizhevsky", "krizhevsky has no published weights"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "lvd142m has no published weights"),  # nor classes
        (lambda pixels: pixels, r"model must be a name, a file or a torch.nn.Module, got function"),
    ],
)
def test_names_without_a_network_or_weights_are_refused(name: Any, message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        load_classifier(name)


def test_a_dense_network_and_a_transformer_by_name(cat: NDArray[np.uint8]) -> None:
    dense = DenseScorer(CONV, weights=None, scales=(1,), runtime="torch")
    assert dense.labels == imagenet_labels()
    assert dense.score(cat).context == "image"
    crops = DenseScorer(VIT, weights=None, scales=(1,), context="patch")
    assert crops.mean == find_entry(VIT).mean
    assert crops.score(cat).patch_scores.shape[1] == 1000


def own_weights(classes: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=classes).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": [0.1]}},
        lambda state: {"model_state_dict": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, "args": None},
    ],
)
def test_weights_as_training_scripts_leave_them(wrap: Any, tmp_path: Path) -> None:
    state = own_weights()
    torch.save(wrap(state), tmp_path / "mine.pth")
    (tmp_path / "classes.txt").write_text("\ufeffa\nb\nc\nd é\n e \nf\r\ng\n\n", "utf-8")
    classifier = load_classifier(VIT, weights=tmp_path / "mine.pth", labels=tmp_path / "classes.txt")
    assert classifier.labels == ("a", "b", "c", "d é", "e", "f", "g")
    loaded = classifier.module.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == state.keys()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"state_dict": {"a": 1}}, "expected tensors by name .* got a dict of 'state_dict'"),
        ({"net": {"a": torch.zeros(1)}, "epoch": 1}, "got a dict of 'net', 'epoch'"),
        ({1: torch.zeros(1)}, "got a dict of 1"),
        ([torch.zeros(1)], "got list"),
        ({}, "missing"),
        ({"head.weight": torch.zeros(())}, "missing"),
        ({**own_weights(), "head.weight": torch.zeros(7)}, "head.weight has shape"),
        ({**own_weights(), "head.bias": torch.zeros(7).to_sparse()}, "head.bias is torch.sparse_coo"),
    ],
)
def test_files_without_weights_are_refused(saved: Any, message: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "mine.pth")
    with pytest.raises(DensescoreError, match=message):
        load_classifier(VIT, weights=tmp_path / "mine.pth")


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "lite0", CONV])
def test_classes_are_counted_from_the_last_layer(name: str, tmp_path: Path) -> None:
    own = find_entry(name).build(None)
    last = [layer for layer in own.modules() if isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) == 1000]
    of_last = {parameter.data_ptr() for parameter in last[-1].parameters()}
    state = {
        key: tensor[:9].clone() if tensor.data_ptr() in of_last else tensor for key, tensor in own.state_dict().items()
    }
    torch.save(state, tmp_path / "nine.pth")
    module = load_classifier(name, weights=tmp_path / "nine.pth").module.eval()
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 9)


def test_networks_that_rescale_their_input_do_so_with_weights() -> None:
    """torchvision turns it on only where it downloads the weights itself."""
    for name in ("googlenet", "inception_v3"):
        assert find_entry(f"torchvision:{name}").build(None).transform_input is True  # type: ignore[comparison-overlap]


def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route\nto the host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = r"could not.* download.*no route\); pass weights= with a file"
    for name in (VIT, "torchvision:resnet18", "alexnet"):
        with pytest.raises(DensescoreError, match=message) as caught:
            load_classifier(name)
        assert "\n" not in str(caught.value)


def test_larger_label_sets_of_timm() -> None:
    labels = find_entry("timm:resnetv2_50x1_bit.goog_in21k").labels()
    assert len(labels) == len(set(labels)) == 21843


def test_a_head_names_its_network(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    weights, path = tmp_path / "mine.pth", tmp_path / "head.safetensors"
    torch.save(own_weights(), weights)
    scorer = DenseScorer(VIT, weights=weights, scales=(1,), context="patch")
    record = {"backbone_digest": scorer.backbone_digest, "context": "patch"}
    head = AdaptationHead(scorer.network.feature_width, 2, width=4).eval()
    file = HeadFile(head, ("x", "y"), scorer.name, scorer.mean, scorer.std, scorer.network.patch, training=record)
    save_head(path, file)
    scores = DenseScorer(path, weights=weights, scales=(1,)).score(cat)
    assert (scores.labels, scores.context) == (("x", "y"), "patch")
    with pytest.raises(DensescoreError, match="trained on other weights of timm:test_vit"):
        DenseScorer(path, weights=None)


@pytest.mark.parametrize("text", ["", "{", '"abc"', '{"a": 1}', "3", "[1, 2]", '["a", null]', "[" * 100_000])
def test_broken_labels_of_a_weights_file_are_refused(text: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", {"labels": text})
    with pytest.raises(DensescoreError, match=r"w.safetensors: labels are not a list of names"):
        read_labels(tmp_path / "w.safetensors")
