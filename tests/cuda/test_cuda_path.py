"""Every line of the CUDA path, without a GPU: no mixed devices, the CPU's numbers, and no wait that `WAITS` lacks."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import densescore
from densescore import DenseScorer, score_many
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import score_set
from densescore.io.video import write_video
from densescore.models.head import save_head
from densescore.models.registry import MODELS, ModelEntry
from densescore.results.batch import response_maps
from densescore.results.scores import DenseScores, best_patches
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import Recipe
from tests.conftest import Toy
from tests.cuda.fake import CUDA, FakeCuda, fake_cuda
from tests.data.voc_set import CLASSES, write_voc

WAITS = {
    "scoring/scorer.py:__init__": "weights and their digests, once for each scorer",
    "network/mosaic.py:_is_exact": "whether a network may share canvases: tried once",
    "network/locality.py:_overhang": "receptive field: probed once for each network",
    "scoring/checks.py:read": "the one wait of a batch: its results are read",
    "results/scores.py:top": "plain numbers",
    "results/scores.py:to_row": "plain numbers",
    "results/scores.py:to_df": "a table of pandas",
    "results/scores.py:_map_boxes": "regions are found on the host",
    "results/scores.py:class_boxes": "boxes of the box layer are merged on the host",
    "results/scores.py:class_map": "drawn on the host",
    "results/scores.py:_certainty": "plain numbers",
    "results/scores.py:best_patches": "ranked on the host",
    "results/scores.py:cpu": "asked for",
    "results/stored.py:write": "a file",
    "results/regions.py:find_place": "plain numbers",
    "transfer/feature_cache.py:_compute": "features go to a file",
    "evaluation/evaluate.py:score_set": "image scores of a whole set are kept on the host",
    "jobs/huge/scoring.py:_score_tile": "scores of a tile go to a file",
    "demo/service.py:page": "numbers of the page",
    "demo/service.py:maps_file": "a file",
}
"""Functions of densescore in which, or below which, the host may wait for the device, and why."""

LEVELS = 2e-2
"""Relative difference of scores from levels that differ by 1 of 255."""

SCALES = (1.0, 1.5)
OPTIONS: dict[str, Any] = {"labels": ("a", "b", "c"), "patch_size": 20, "scales": SCALES}


class Folded(nn.Module):
    """Padding, batch norm, depthwise convolutions of both strides and a global pool: what lite0 is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        )  # fmt: skip
        self.fc = nn.Linear(24, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.weight.fill_(1.5)
                    layer.get_buffer("running_var").uniform_(0.5, 2, generator=generator)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(pixels).mean((2, 3)))


class Mixed(nn.Module):
    """Attention over the whole crop: scored by crops alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.fc = nn.Conv2d(3, 8, 5, 5), nn.Linear(16, 16), nn.Linear(8, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(pixels).flatten(2)
        return self.fc((tokens + self.mix(tokens).relu()).mean(2))


MODULES: dict[str, Callable[[], nn.Module]] = {"toy": Toy, "folded": Folded, "mixed": Mixed}


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as device:
        yield device


@pytest.fixture(scope="module")
def photographs(coffee: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [coffee[:height, :width] for height, width in ((40, 60), (60, 40), (50, 71), (33, 60))]


def unexpected(device: FakeCuda) -> Counter[str]:
    """Waits in functions that `WAITS` does not list."""
    waits = [wait for wait in device.waits if wait.places and not WAITS.keys() & set(wait.places)]
    return Counter(f"{wait.kind}: {' < '.join(wait.places[:3])}" for wait in waits)


def check(device: FakeCuda) -> None:
    assert not device.races
    assert not unexpected(device)
    device.reset()


def same(actual: torch.Tensor, expected: torch.Tensor, dtype: str = "float32") -> None:
    tolerance = {"float32": LEVELS, "bfloat16": 6e-2, "float16": LEVELS}[dtype]
    assert expected.std() > 0
    assert (actual.cpu() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("toy", {}),
        ("toy", {"labels": None, "k": 2.5, "max_cells": 500}),
        ("toy", {"dtype": "bfloat16"}),
        ("toy", {"dtype": torch.float16}),
        ("toy", {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)}),
        ("toy", {"scales": None, "patch_sizes": (20, 31)}),
        ("toy", {"stride": 2}),
        ("toy", {"stride": 1, "dtype": "bfloat16", "scales": (1,)}),
        ("toy", {"context": "patch"}),
        ("toy", {"context": "image", "runtime": "torch", "device": CUDA}),
        ("toy", {"device": "auto"}),
        ("folded", {}),
        ("folded", {"dtype": "bfloat16"}),
        ("folded", {"stride": 2}),
        ("mixed", {"context": "patch"}),
    ],
    ids=str,
)
def test_a_scorer_from_each_option(
    module: str, options: dict[str, Any], cuda: FakeCuda, photographs: list[NDArray[np.uint8]]
) -> None:
    options = {"device": "cuda", **OPTIONS, **options}
    near = DenseScorer(MODULES[module](), **{**options, "device": "cpu", "runtime": "torch"})
    far = DenseScorer(MODULES[module](), **options)
    assert far.device.type == "cuda"
    check(cuda)
    dtype = str(far.dtype).removeprefix("torch.")
    scores = far.score(photographs[0])
    assert scores.patch_scores.device == CUDA
    check(cuda)
    same(scores.patch_scores, near.score(photographs[0]).patch_scores, dtype)
    same(far.features(photographs[0]), near.features(photographs[0]), dtype)
    same(next(iter(far.patches(photographs[1]))).values, next(iter(near.patches(photographs[1]))).values, dtype)
    check(cuda)
    for one, other in zip(far.score_batch(photographs), near.score_batch(photographs), strict=True):
        same(one.image_scores(), other.image_scores(), dtype)


def test_a_named_model(cuda: FakeCuda, cat: NDArray[np.uint8]) -> None:
    near, far = (DenseScorer("lite0", scales=(1,), device=device, runtime="torch") for device in ("cpu", "cuda"))
    check(cuda)
    scores = far.score(cat)
    check(cuda)
    expected = near.score(cat)
    assert scores.top(1)[0].label == expected.top(1)[0].label == "Egyptian cat"
    likely = expected.patch_scores > 0.01
    torch.testing.assert_close(scores.patch_scores.cpu()[likely], expected.patch_scores[likely], rtol=1e-2, atol=0)


def test_convolutions_that_cudnn_does_not_fuse(
    cuda: FakeCuda, photographs: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[torch.Size] = []

    def refuse(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> None:
        tries.append(weight.shape)
        raise RuntimeError("FIND was unable to find an engine to execute this computation")

    monkeypatch.setattr("densescore.network.gpu.layers._REFUSED", set())
    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    scorer = DenseScorer(Toy(), **OPTIONS, device=CUDA)
    for image in photographs:
        same(scorer.score(image).patch_scores, DenseScorer(Toy(), **OPTIONS, device="cpu").score(image).patch_scores)
    assert len(tries) == len(set(tries)) > 0  # each kind once
    check(cuda)


def test_float32_convolutions_without_tf32(
    cuda: FakeCuda, photographs: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting: Any = torch.backends.cudnn
    before, seen = setting.conv.fp32_precision, list[str]()

    def watched(convolve: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watch(*arguments: Any) -> torch.Tensor:
            seen.append(setting.conv.fp32_precision)
            return convolve(*arguments)

        return watch

    for module, name in ((torch, "cudnn_convolution_relu"), (torch.nn.functional, "conv2d")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    scorer = DenseScorer(Toy(), **OPTIONS, device=CUDA)
    scorer.score(photographs[0])
    seen.clear()  # the network was tried before, with zeros
    for context in ("image", "patch"):
        scorer.score(photographs[0], context=context)
    with ThreadPoolExecutor(2) as pool:  # whoever leaves first does not change the setting
        [*pool.map(scorer.score, photographs)]
    [*score_many(photographs, scorer)]
    assert {*seen} == {"ieee"}
    assert setting.conv.fp32_precision == before != "ieee"


def test_one_wait_for_each_batch(cuda: FakeCuda, photographs: list[NDArray[np.uint8]]) -> None:
    for module in ("toy", "folded"):
        scorer = DenseScorer(MODULES[module](), device="cuda", **OPTIONS)
        scorer.score_batch(photographs)  # constants come to the device once
        cuda.reset()
        results = scorer.score_batch(photographs)
        for scores in results:
            scores.patch_scores.tolist()
        waits = [wait for wait in cuda.waits if wait.places]  # the test's own copies have none
        assert len(waits) <= 1, cuda.counted_waits()
        assert not cuda.races


def test_a_stream_of_batches(cuda: FakeCuda, photographs: list[NDArray[np.uint8]]) -> None:
    far = DenseScorer(Folded(), device="cuda", **OPTIONS)
    near = DenseScorer(Folded(), device="cpu", runtime="torch", **OPTIONS)
    far.score_batch(photographs)
    cuda.reset()
    items = list(score_many(photographs * 5, far, batch=4))
    waits = cuda.waits
    assert len(waits) <= len(items) / 4, cuda.counted_waits()
    check(cuda)
    for item, image in zip(items, photographs * 5, strict=True):
        assert item.scores is not None, item.error
        same(item.scores.patch_scores, near.score(image).patch_scores)


BLACK = np.zeros((40, 60, 3), np.uint8)

USES: dict[str, Callable[[DenseScores, Path], Any]] = {
    "top": lambda scores, _: scores.top(),
    "image_scores": lambda scores, _: scores.image_scores(2.0),
    "confidence": lambda scores, _: scores.confidence(),
    "patches": lambda scores, _: [(patch.box, patch.values) for patch in scores],
    "select": lambda scores, _: scores.select(["c", "a"]).top(),
    "columns": lambda scores, _: scores.columns(["b", "c"]),
    "response_map": lambda scores, _: scores.response_map(["a"]),
    "heatmap": lambda scores, _: scores.heatmap(),
    "response_maps": lambda scores, _: response_maps([scores, scores], ["a"]),
    "class_map": lambda scores, _: scores.class_map("a", 20),
    "locate": lambda scores, _: scores.locate(),
    "locate by response map": lambda scores, _: scores.locate("b", by="response_map"),
    "find_boxes": lambda scores, _: scores.find_boxes("b"),
    "boxes_from_map": lambda scores, _: scores.boxes_from_map("b", 0.8),
    "class_boxes": lambda scores, _: scores.class_boxes(["a", "b"]),
    "to_row": lambda scores, _: scores.to_row(),
    "to_df": lambda scores, _: scores.to_df().values.tolist(),
    "to_coco": lambda scores, _: scores.to_coco(1, ["a", "b"]),
    "to_supervision": lambda scores, _: scores.to_supervision("a").xyxy,
    "best_patches": lambda scores, _: best_patches(scores, "a"),
    "plot": lambda scores, _: len(scores.plot("a", image=BLACK).axes),
    "plot_sheet": lambda scores, _: len(scores.plot_sheet(["a", "b"], image=BLACK).axes),
    "html": lambda scores, _: "<img" in replace(scores, source=BLACK)._repr_html_(),
    "save": lambda scores, folder: saved(scores, folder / "scores.safetensors"),
    "save_heatmap": lambda scores, folder: scores.save_heatmap(folder / "map.png", "a", image=BLACK),
    "pickle": lambda scores, _: pickle.loads(pickle.dumps(scores)).patch_scores,
    "repr": lambda scores, _: len(repr(scores)),
}
"""Everything that people do with results."""


def saved(scores: DenseScores, path: Path) -> torch.Tensor:
    scores.save(path)
    return DenseScores.load(path).patch_scores


def assert_same(actual: Any, expected: Any, rel: float = 1e-4) -> None:
    """Equal, numbers to rounding, or to what levels that differ by 1 of 255 do."""
    if isinstance(actual, torch.Tensor | np.ndarray):
        actual, expected = actual.tolist(), expected.tolist()
    if hasattr(actual, "__dataclass_fields__"):
        actual, expected = vars(actual), vars(expected)
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        actual, expected = [*actual.values()], [*expected.values()]
    if isinstance(actual, list | tuple):
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, rel)
    else:
        assert actual == (pytest.approx(expected, rel=rel, abs=rel / 100) if isinstance(expected, float) else expected)


def test_results(cuda: FakeCuda, photographs: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    far = DenseScorer(Toy(), device="cuda", **OPTIONS).score(photographs[0])
    near = far.cpu()
    cuda.reset()
    for use, call in USES.items():
        answers = []
        for scores in (near, far):
            folder = tmp_path / f"{use} {scores.patch_scores.device.type}"
            folder.mkdir()
            answers.append(call(scores, folder))
        check(cuda)
        assert_same(answers[1], answers[0])


# Training, and what trained heads do

QUICK = Recipe(scales=SCALES, width=16, round=128, batch=64, max_rounds=2, heads=1)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), {"train": 9, "val": 3})


@pytest.fixture
def toy_model() -> Iterator[str]:
    MODELS["toy"] = ModelEntry("a toy", lambda weights: Toy(), lambda: {}, "none", "tests", patch_size=20)
    yield "toy"
    del MODELS["toy"]


@pytest.mark.parametrize("labels", ["boxes", "labels"])
def test_training_and_its_head(labels: str, cuda: FakeCuda, voc: Path, toy_model: str, tmp_path: Path) -> None:
    images = load_boxed(voc, "train")
    recipe = QUICK if labels == "boxes" else replace(QUICK, image_rounds=2, image_bag=20, image_patches=10)
    subset = images if labels == "boxes" else without_boxes(images)
    heads = {}
    for device in ("cpu", "cuda"):
        scorer = DenseScorer(toy_model, scales=SCALES, device=device)
        check(cuda)
        heads[device] = train_model(
            subset, scorer, FeatureCache(scorer, tmp_path / device), recipe, boxes=labels == "boxes"
        )
        check(cuda)
    one, other = (heads[device].head.state_dict() for device in ("cuda", "cpu"))
    for name in one:
        assert (one[name] - other[name]).norm() < 0.05 * other[name].norm()
    save_head(tmp_path / "head.safetensors", heads["cuda"])

    near, far = (DenseScorer(tmp_path / "head.safetensors", device=device) for device in ("cpu", "cuda"))
    assert (far.box_layer is not None) == (labels == "boxes")
    cuda.reset()
    val = load_boxed(voc, "val")
    for image in val.images:
        scores, expected = far.score(image.path), near.score(image.path)
        check(cuda)
        same(scores.patch_scores, expected.patch_scores)
        assert_same(scores.class_boxes(CLASSES), scores.cpu().class_boxes(CLASSES))
        check(cuda)
    paths = [image.path for image in val.images]
    for scores, path in zip(far.score_batch(paths), paths, strict=True):
        assert_same(scores.find_boxes("red"), far.score(path).find_boxes("red"))
    check(cuda)
    cached = cached_scores(far, FeatureCache(far, tmp_path / "cuda"))
    sets = [
        score_set(val, score, (1.0, 5.0), boxes=True)
        for score in (lambda image: near.score(image.path), lambda image: far.score(image.path), cached)
    ]
    for part in sets[1:]:
        np.testing.assert_allclose(part.scores, sets[0].scores, rtol=0.05, atol=1e-4)
    check(cuda)


def without_boxes(images: Any) -> Any:
    """The images with the labels of their boxes alone."""
    from densescore.data.labeled_set import LabeledSet

    return LabeledSet(images.name, images.classes, images.images)


# Jobs


def test_a_huge_image(cuda: FakeCuda, coffee: NDArray[np.uint8], tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    tifffile.imwrite(tmp_path / "photo.tif", coffee[:150, :210], tile=(64, 64), compression="zlib", photometric="rgb")
    results = []
    for device in ("cpu", "cuda"):
        scorer = DenseScorer(
            Folded(), device=device, runtime="torch", **{**OPTIONS, "patch_size": 24, "scales": (2, 3)}
        )
        cuda.reset()
        result = densescore.score_huge(scorer, tmp_path / "photo.tif", tmp_path / device, memory=4e-4)
        assert result["tiles"] > 1
        check(cuda)
        results.append([(entry["label"], entry["score"]) for entry in result["top"]])
    assert_same(results[1], results[0], LEVELS)


def test_a_video(cuda: FakeCuda, coffee: NDArray[np.uint8], tmp_path: Path) -> None:
    with write_video(tmp_path / "film.mp4", fps=4) as add:
        for step in range(8):
            add(coffee[:60, step : step + 80])
    frames = []
    for device in ("cpu", "cuda"):
        scorer = DenseScorer(Toy(), device=device, **OPTIONS)
        frames.append([frame.scores.top() for frame in densescore.score_video(tmp_path / "film.mp4", scorer, fps=4)])
        if device == "cuda":
            check(cuda)
    assert len(frames[0]) == 8
    assert_same(frames[1], frames[0], LEVELS)


def test_the_page(cuda: FakeCuda, coffee: NDArray[np.uint8]) -> None:
    from densescore.demo.service import Service
    from densescore.io.images import read_image
    from tests.demo.raw import png

    pages = []
    for device in ("cpu", "cuda"):
        service = Service({"toy": lambda device=device: DenseScorer(Toy(), device=device, **OPTIONS)})  # type: ignore[misc]
        pages.append(service.submit(png(), "toy", lambda answer: (answer.page(), answer.maps_file(10**6))).result(60))
        service.close()
    check(cuda)
    for one, other in zip(pages[1][0]["classes"], pages[0][0]["classes"], strict=True):
        assert_same([one["label"], one["confidence"]], [other["label"], other["confidence"]], LEVELS)
    assert read_image(png()).shape == (30, 40, 3)
