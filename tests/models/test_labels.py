"""Labels that are known before a network is built are those that the network is given."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from densescore import DensescoreError
from densescore.models import MODELS, AdaptationHead, load_classifier
from densescore.models.adaptation import HeadFile, save_head
from densescore.models.labels import find_label, imagenet_labels, known_labels
from densescore.models.weights import save_weights


def test_imagenets_labels_are_torchvisions() -> None:
    assert imagenet_labels() == tuple(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_named_model_has_the_labels_that_were_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densescore.models.registry.check_weights_finite", lambda *_: None)  # there are no values
    known = known_labels(name, None)
    with torch.device("meta"):
        classifier = load_classifier(name, weights=None)
    outputs = [layer.out_features for layer in classifier.module.modules() if isinstance(layer, nn.Linear)][-1]
    assert known is None or (known == classifier.labels and len(known) == outputs)
    assert known == known_labels(name, "default")


def test_labels_of_files(tmp_path: Path) -> None:
    head = HeadFile(AdaptationHead(4, 2), ("dog", "background"), "lite0", (0.5,) * 3, (0.5,) * 3, 224)
    save_head(tmp_path / "head.safetensors", head)
    save_weights(tmp_path / "own.safetensors", {"w": torch.zeros(1)}, ("a", "b, c"))
    save_file({"w": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert known_labels(tmp_path / "head.safetensors", "default") == ("dog", "background")
    assert known_labels("krizhevsky", tmp_path / "own.safetensors") == ("a", "b, c")
    assert known_labels("krizhevsky", tmp_path / "bare.safetensors") is None
    assert known_labels("krizhevsky", tmp_path / "own.pt") is None
    assert known_labels("no such model", "default") is None


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_file_that_is_no_head_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DensescoreError, match=r"head\.safetensors: cannot be read"):
        known_labels(path, "default")


def test_a_wrong_label_is_answered_with_the_nearest() -> None:
    assert find_label("b", ("a", "b")) == 1
    with pytest.raises(DensescoreError, match="no class 'tabbi': did you mean tabby"):
        find_label("tabbi", imagenet_labels())
