"""The files that `export_heatmaps` leaves: the raw map, a picture with a fixed scale, and a true manifest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from densescore import DensescoreError, DenseScores, Pyramid
from densescore.io.names import from_text
from densescore.results.heatmaps import draw_overlay, export_heatmaps


@pytest.fixture
def scores() -> DenseScores:
    pyramid = Pyramid.of(90, 130, scales=(1, 2), patch=20, stride=4)
    logits = 3 * torch.randn(len(pyramid), 3, generator=torch.Generator().manual_seed(0))
    return DenseScores(logits.softmax(1), ("a cat", "a/cat", "dog"), pyramid, model="toy", timings={"trunk": 0.5})


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.full((90, 130, 3), 128, np.uint8)


def test_a_folder_with_maps_pictures_and_a_manifest(
    tmp_path: Path, scores: DenseScores, image: NDArray[np.uint8]
) -> None:
    folder = tmp_path / "out" / "photo"
    export_heatmaps(scores, image, ["a cat", "a/cat", "a cat"], folder, source="photo.jpg")
    assert sorted(file.name for file in folder.iterdir()) == [
        ".densescore", "a_cat-2.npz", "a_cat-2.png", "a_cat.npz", "a_cat.png", "manifest.json",
    ]  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["image"] == {"source": "photo.jpg", "height": 90, "width": 130}
    assert manifest["geometry"]["patches"] == len(scores.boxes)
    assert manifest["timings"] == {"trunk": 0.5}
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    for entry, label in zip(manifest["classes"], ("a cat", "a/cat"), strict=True):
        with np.load(folder / entry["map"]) as stored:
            values = stored["map"]
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, scores.response_map([label])[0])
        assert entry["label"] == label
        assert entry["map_maximum"] == values.max()
        assert entry["regions"][0]["box"] == list(scores.boxes_from_map(label)[0].box)
        best = scores.patch_scores[:, scores.index(label)].max().item()
        assert entry["best_patches"][0]["score"] == pytest.approx(best)
        assert entry["image_score"] == pytest.approx(scores.image_scores()[scores.index(label)].item())


def test_nothing_half_written_and_nothing_overwritten(
    tmp_path: Path, scores: DenseScores, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photo"
    with monkeypatch.context() as patch:
        patch.setattr("densescore.results.heatmaps.draw_overlay", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_heatmaps(scores, image, ["dog"], folder)
    assert list(tmp_path.iterdir()) == []
    export_heatmaps(scores, image, ["dog"], folder)
    with pytest.raises(DensescoreError, match="photo: exists already"):
        export_heatmaps(scores, image, ["a cat"], folder)
    export_heatmaps(scores, image, ["a cat"], folder, overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == [".densescore", "a_cat.npz", "a_cat.png", "manifest.json"]
    with pytest.raises(DensescoreError, match=r"expected the \(90, 130\) pixels"):
        export_heatmaps(scores, image[:50], ["dog"], tmp_path / "other")


def pixels_of(path: Path) -> NDArray[np.float64]:
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def test_colors_mean_the_same_in_every_picture_unless_rescaled(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    ramp = np.tile(np.linspace(0.1, 0.2, 130, dtype=np.float32), (90, 1))
    for name, values, value_range in (
        ("fixed", ramp, (0.0, 1.0)),
        ("doubled", 2 * ramp, (0.0, 1.0)),
        ("stretched", ramp, None),
        ("stretched doubled", 2 * ramp, None),
    ):
        draw_overlay(image, values, "", tmp_path / f"{name}.png", value_range=value_range)
    picture = {path.stem: pixels_of(path)[200:400, 200:800] for path in tmp_path.glob("*.png")}
    assert np.abs(picture["fixed"] - picture["doubled"]).mean() > 10  # twice the score is another color
    assert np.abs(picture["stretched"] - picture["stretched doubled"]).mean() < 1  # asked for: shape alone


def test_a_hot_corner_is_drawn_in_its_corner(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    values = np.zeros((90, 130), np.float32)
    values[:45, :65] = 1
    draw_overlay(image, values, "", tmp_path / "x.png")
    redness = (lambda p: p[..., 0] - p[..., 2])(pixels_of(tmp_path / "x.png"))
    height, width = redness.shape
    hot = redness[height // 5 : height * 2 // 5, width // 5 : width * 2 // 5].mean()
    cold = redness[height * 3 // 5 : height * 4 // 5, width * 3 // 5 : width * 4 // 5].mean()
    assert hot > 60
    assert cold < 0


def test_classes_whose_names_are_alike_have_a_map_each(
    tmp_path: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densescore.results.heatmaps.draw_overlay", lambda *x, **_: Path(x[3]).write_text(x[2]))
    labels = ("a_b", "a_b-3", "a/b", "A B", "crane", "crane", "con", "x" * 300, "é\ud800", "$x^2$", "a_b-2")
    pyramid = Pyramid.of(90, 130, scales=(1,), patch=20, stride=8)
    values = torch.rand(len(pyramid), len(labels), generator=torch.Generator().manual_seed(0))
    scores = DenseScores(values, labels, pyramid)
    assert scores.labels[4:6] == ("crane (4)", "crane (5)")
    with pytest.raises(DensescoreError, match=r"several have this name; choose one of crane \(4\), crane \(5\)"):
        scores.response_map("crane")
    assert len({ranked.label for ranked in scores.top(99)}) == len(labels)
    folder = tmp_path / "all"
    manifest = export_heatmaps(scores, image, scores.labels, folder, source="caf\udce9.png")
    json.dumps(manifest, ensure_ascii=False).encode()
    assert from_text(manifest["image"]["source"]) == "caf\udce9.png"
    files = [entry[key].lower() for entry in manifest["classes"] for key in ("map", "overlay")]
    assert len(set(files)) == 2 * len(labels)
    for index, entry in enumerate(manifest["classes"]):
        assert from_text(entry["label"]) == scores.labels[index]
        with np.load(folder / entry["map"]) as stored:
            np.testing.assert_array_equal(stored["map"], scores.response_map([scores.labels[index]])[0])
            assert str(stored["label"]) == scores.labels[index]
        assert (folder / entry["overlay"]).read_text() == entry["label"]
    one = export_heatmaps(scores, image, ["a/b"], tmp_path / "one")  # named as among all
    assert one["classes"][0]["map"] == manifest["classes"][2]["map"]


def test_a_folder_with_the_longest_name_that_is_legal(
    tmp_path: Path, scores: DenseScores, image: NDArray[np.uint8]
) -> None:
    folder = tmp_path / ("x" * 250)
    for overwrite in (False, True):
        export_heatmaps(scores, image, ["dog"], folder, overwrite=overwrite)
    assert {file.name for file in tmp_path.iterdir()} == {folder.name}
    assert (folder / "dog.npz").exists()
