"""Networks that are not convolutional, scored by the paper's crops."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models.deit import VisionTransformerDistilled
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from densescore import DensescoreError, DenseScorer, score_many
from densescore.data.load import load_boxed
from densescore.jobs.huge import score_huge
from densescore.models.head import AdaptationHead, HeadFile, save_head
from densescore.models.registry import MODELS, ModelEntry
from densescore.network.crops import CropNetwork, to_crops
from densescore.network.export import export_model
from densescore.results.heatmaps import export_heatmaps
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import train_model
from densescore.transfer.recipe import RECIPES
from tests.conftest import Toy
from tests.data.voc_set import write_voc
from tests.network.cpu.operations import Function

LABELS = ("a", "b", "c", "d", "e")
SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "num_classes": 5}


class Branching(nn.Module):
    """Control flow that depends on values, which no tracer can follow, and an operation after the last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(3 * 16 * 16, 12), nn.Linear(12, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(pixels, 16).flatten(1)
        if small.sum() > 1e9:
            raise AssertionError
        return 3 * self.last(self.hidden(small).relu())


def clip_like() -> nn.Module:
    """A transformer's image tower, normalized, with a linear head."""
    tower = VisionTransformer(patch_size=16, depth=1, num_heads=2, **{**SMALL, "num_classes": 0})
    return nn.Sequential(tower, Function(partial(nn.functional.normalize, dim=1)), nn.Linear(24, 5))


def volume() -> nn.Module:
    """Convolves across channels, as the lambda layer does: a weight of five dimensions."""
    layer = nn.Conv3d(1, 4, (3, 16, 16), stride=16)
    return nn.Sequential(Function(lambda x: x[:, None]), layer, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(patch_size=16, depth=2, num_heads=2, **SMALL),
    "swin": lambda: SwinTransformer(patch_size=4, window_size=4, depths=(1, 1), num_heads=(2, 2), **SMALL),
    "mixer": lambda: MlpMixer(patch_size=16, num_blocks=2, **SMALL),
    "clip": clip_like,
    "distilled": lambda: VisionTransformerDistilled(patch_size=16, depth=1, num_heads=2, **SMALL),
    "branching": Branching,
    "volume": volume,
}
WIDTHS = {"vit": 24, "swin": 48, "mixer": 24, "clip": 24, "distilled": 24, "branching": 12, "volume": 64}


def module_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in module.parameters():  # zero biases and small heads would make all patches alike
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def scorer_of(kind: str, **options: Any) -> DenseScorer:
    defaults = {"labels": LABELS, "patch_size": 64, "scales": (1, 1.7), "context": "patch", "device": "cpu"}
    return DenseScorer(module_of(kind), **{**defaults, **options})


def crops_of(scorer: DenseScorer, image: NDArray[np.uint8]) -> Tensor:
    """Every patch, cut out one at a time: ``[M, 3, P, P]``."""
    pyramid = scorer.pyramid(*image.shape[:2])
    crops = []
    for level in pyramid.levels:
        pixels = scorer.level(image, pyramid, level)
        for row, col in itertools.product(range(level.rows), range(level.cols)):
            x0, y0, x1, y1 = pyramid.window(level, row, col)
            crops.append(pixels[0, :, y0:y1, x0:x1])
    return torch.stack(crops)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_scores_and_features_are_the_modules_own(kind: str, cat: NDArray[np.uint8]) -> None:
    scorer, module = scorer_of(kind), module_of(kind)
    crops = crops_of(scorer, cat)
    inputs: list[Tensor] = []
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    expected = torch.cat([module(crop[None]) for crop in crops]).softmax(1)  # one crop at a time
    scores = scorer.score(cat)
    torch.testing.assert_close(scores.patch_scores, expected, rtol=1e-4, atol=1e-6)
    assert scores.patch_scores.std(0).min() > 1e-4  # patches differ
    assert (scores.context, scores.labels, scorer.network.stride) == ("patch", LABELS, 32)
    features = scorer.features(cat)
    assert features.shape == (len(crops), WIDTHS[kind])
    torch.testing.assert_close(features, torch.cat(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_context_patch_they_are_refused(kind: str) -> None:
    with pytest.raises(DensescoreError):
        scorer_of(kind, context=None)


def test_context_patch_is_only_the_default_of_a_dense_network(cat: NDArray[np.uint8]) -> None:
    options: dict[str, Any] = {"labels": ["a", "b", "c"], "patch_size": 20, "scales": (1, 1.5)}
    dense, cropped = DenseScorer(Toy(), **options), DenseScorer(Toy(), context="patch", **options)
    assert cropped.score(cat).context == "patch"
    assert cropped.score(cat, context="image").context == "image"
    assert dense.score(cat).context == "image"
    torch.testing.assert_close(cropped.features(cat), dense.features(cat, context="patch"))
    assert cropped.weights_digest == dense.weights_digest
    with pytest.raises(DensescoreError, match="context must be 'image' or 'patch', got 'crop'"):
        DenseScorer(Toy(), context="crop", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["vit", "distilled"])
def test_threads_do_not_read_each_others_features(kind: str, cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> None:
    scorer = scorer_of(kind)
    images = [cat, coffee, cat[:, ::-1].copy(), coffee[:, ::-1].copy()]
    expected = [scorer.features(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for features, alone in zip(pool.map(scorer.features, images * 6), expected * 6, strict=True):
            torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 16}, "stride=16: this network is scored by crops .* 32 pixels apart"),
        ({"runtime": "openvino"}, "runtime 'openvino' needs a convolutional network"),
        ({"patch_size": 60}, r"cannot be run on 60×60 pixels \(patch_size=60\)"),
    ],
)
def test_options_of_convolutional_networks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        scorer_of("vit", **options)


def test_what_needs_the_other_kind_of_network_is_refused(cat: NDArray[np.uint8], tmp_path: Path) -> None:
    scorer = scorer_of("vit")
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: scorer.score(cat, context="image"), "context 'image' needs a convolutional network"),
        (lambda: score_huge(scorer, tmp_path / "slide.tif", tmp_path / "out"), "tiles needs a convolutional network"),
        (
            lambda: export_model(module_of("vit"), tmp_path / "vit.onnx", patch_size=64),
            "combines positions by attention",
        ),
        (lambda: DenseScorer(Toy(), patch_size=20, runtime="compile"), "'compile' is for networks .* scored by crops"),
    ]
    for use, message in cases:
        with pytest.raises(DensescoreError, match=message):
            use()
    assert list(tmp_path.iterdir()) == []


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(3, 3), make

    def forward(self, pixels: Tensor) -> Any:
        return self.make(pixels)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda x: {"logits": x}, "dict"),
        (lambda x: x.mean((1, 2, 3)), r"\(2,\)"),
        (lambda x: x, r"\(2, 3, 64, 64\)"),
        (lambda x: x.flatten(1)[:1], r"\(1, 12288\)"),
        (lambda x: x.flatten(1)[:, :0], r"\(2, 0\)"),
    ],
)
def test_outputs_that_are_not_logits_are_refused(make: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(DensescoreError, match=rf"must return one \[N, classes\] tensor of logits; .* {got}"):
        to_crops(Returns(make), 64)


def test_a_network_without_a_linear_layer_has_scores_but_no_features(cat: NDArray[np.uint8]) -> None:
    network = Returns(lambda x: x.mean((2, 3)))
    scorer = DenseScorer(network, labels=["a", "b", "c"], patch_size=64, scales=(1,), context="patch")
    assert scorer.score(cat).patch_scores.std() > 1e-4
    assert isinstance(scorer.network, CropNetwork)
    with pytest.raises(DensescoreError, match="it has no features"):
        scorer.features(cat)


def test_streams_and_heatmaps(cat: NDArray[np.uint8], tmp_path: Path) -> None:
    scorer = scorer_of("swin")
    (item,) = score_many([cat], scorer)
    assert item.scores
    torch.testing.assert_close(item.scores.patch_scores, scorer.score(cat).patch_scores)
    manifest = export_heatmaps(item.scores, cat, ["a", "b"], tmp_path / "maps")
    assert (item.scores.context, manifest["context"]) == ("patch", "patch")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> str:
    """The ViT under a name, as ``timm:…`` would be."""
    build = lambda state: module_of("vit")  # noqa: E731
    entry = ModelEntry("a ViT", build, lambda: {}, "none", "tests", patch_size=64, scales=(1, 1.7))
    monkeypatch.setitem(MODELS, "toy-vit", entry)
    return "toy-vit"


@pytest.mark.parametrize("kind", ["vit", "distilled"])
def test_a_head_replaces_the_last_layer(kind: str, cat: NDArray[np.uint8]) -> None:
    scorer = scorer_of(kind)
    features = scorer.features(cat)
    torch.manual_seed(0)
    head = AdaptationHead(24, 3, width=8).eval()
    scorer.network = scorer.network.with_classifier(head, 24, 3)
    scorer.labels = ("x", "y", "z")
    with torch.no_grad():
        expected = head(features).softmax(1)
    for scores in (scorer.score(cat), scorer.score_features(features, *cat.shape[:2])):
        torch.testing.assert_close(scores.patch_scores, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(DensescoreError, match="the head takes 7 features, but the network gives 24"):
        scorer.network.with_classifier(head, 7, 3)


def test_a_head_is_trained_and_loads_its_network_by_name(named: str, tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    boxed = load_boxed(write_voc(tmp_path / "voc", {"train": 8}), "train")
    recipe = replace(RECIPES["default"], width=16, round=256, image_rounds=1, max_rounds=1, scales=(1.0, 1.7))
    scorer = DenseScorer(named, scales=recipe.scales, context="patch")
    file = train_model(boxed, scorer, FeatureCache(scorer, tmp_path / "cache"), recipe)
    assert (file.backbone, file.training["context"], file.patch_size) == (named, "patch", 64)
    path = tmp_path / "head.safetensors"
    save_head(path, file)
    trained = DenseScorer(path)  # the file says that it was trained on crops
    assert trained.context == "patch"
    assert isinstance(trained.network, CropNetwork)
    pixels = np.ascontiguousarray(cat[:100, :130])
    with torch.no_grad():
        logits = file.head(DenseScorer(named, scales=trained.scales, context="patch").features(pixels))
    probabilities = logits.sigmoid() if file.activation == "sigmoid" else logits.softmax(1)
    torch.testing.assert_close(trained.score(pixels).patch_scores, probabilities, rtol=1e-4, atol=1e-6)


def test_a_head_trained_densely_needs_consent_to_crops(named: str, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    head = AdaptationHead(24, 2, width=4)
    file = HeadFile(head, ("x", "y"), named, (0.5,) * 3, (0.5,) * 3, 64, training={"context": "image"})
    save_head(path, file)
    with pytest.raises(DensescoreError):
        DenseScorer(path)
    assert DenseScorer(path, context="patch").context == "patch"


def test_the_compiled_network_has_the_same_scores(cat: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's own work takes a minute; the graphs that it would be given run as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    eager, compiled = scorer_of("mixer").score(cat), scorer_of("mixer", runtime="compile")
    scores = compiled.score(cat)
    assert (scores.runtime, eager.runtime) == ("compile", "torch")
    torch.testing.assert_close(scores.patch_scores, eager.patch_scores, rtol=1e-4, atol=1e-6)
    assert compiled.network.embed_crops(torch.zeros(1, 3, 64, 64)).shape == (1, 24)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="none such"))
    with pytest.raises(DensescoreError, match="runtime 'compile': torch.compile failed: .*none such"):
        scorer_of("mixer", runtime="compile")


def test_bfloat16_is_near_float32(cat: NDArray[np.uint8]) -> None:
    scorer = scorer_of("vit", dtype="bfloat16")
    assert next(scorer.network.parameters()).dtype == torch.bfloat16
    difference = scorer.score(cat).patch_scores - scorer_of("vit").score(cat).patch_scores
    assert 0 < difference.abs().max() < 0.1
