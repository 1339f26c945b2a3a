"""The files that `export_heatmaps` leaves: the raw map, a picture with a fixed scale, and a true manifest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from densescore import DensescoreError, DenseScores, Pyramid
from densescore.io.names import as_text, from_text
from densescore.results.heatmaps import SHEET, export_heatmaps
from densescore.results.overlay import Colors, draw_map, draw_overlay


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
        assert entry["confidence"] == pytest.approx(entry["image_score"] ** (1 / 5))


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


def one_level(patch_scores: list[float], height: int = 90, width: int = 130) -> DenseScores:
    """Patches of 20 pixels every 4, of one class, at one level of the image's own size."""
    pyramid = Pyramid.of(height, width, patch_sizes=(20,), patch=20, stride=4)
    values = torch.zeros(len(pyramid), 1)
    values[: len(patch_scores), 0] = torch.tensor(patch_scores)
    return DenseScores(values, ("x",), pyramid)


def blob(high: float, corner: tuple[int, int] = (20, 20), side: int = 44) -> DenseScores:
    """A square of patches that score `high` within others that score nothing."""
    empty = one_level([])
    (level,) = empty.levels
    cells = torch.zeros(level.rows, level.cols)
    cells[corner[1] // 4 : (corner[1] + side - 20) // 4, corner[0] // 4 : (corner[0] + side - 20) // 4] = high
    return DenseScores(cells.reshape(-1, 1), ("x",), empty.pyramid)


def drawn(image: NDArray[np.uint8], scores: DenseScores, colors: Colors = "relative") -> NDArray[np.float64]:
    """The photograph with the map on it, at the photograph's size: [H, W, 3]."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(width / 10, height / 10), dpi=40)
    canvas = FigureCanvasAgg(figure)
    draw_map(figure.add_axes((0, 0, 1, 1)), image, scores, "x", colors=colors)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)  # four times as large
    return pixels.reshape(height, 4, width, 4, 3).mean((1, 3))


@pytest.mark.parametrize("high", [0.06, 0.2, 0.9])
@pytest.mark.parametrize("corner", [(8, 8), (72, 36)])
def test_what_does_not_respond_stays_the_photograph(
    image: NDArray[np.uint8], high: float, corner: tuple[int, int]
) -> None:
    changed = np.abs(drawn(image, blob(high, corner)) - image).sum(2)
    x, y = corner
    assert changed[y + 17 : y + 27, x + 17 : x + 27].min() > 60  # the object is colored, at any height of its peak
    outside = np.ones((90, 130), bool)
    outside[max(y - 8, 0) : y + 52, max(x - 8, 0) : x + 52] = False
    assert changed[outside].max() < 3


def test_a_class_that_is_not_there_does_not_shine(image: NDArray[np.uint8]) -> None:
    faint, strong = (np.abs(drawn(image, blob(high)) - image).sum(2)[34:50, 30:36].mean() for high in (0.001, 0.9))
    assert faint < 0.4 * strong
    nothing = np.abs(drawn(image, blob(0.0)) - image).sum(2)
    assert (nothing > 3).mean() < 0.02  # the cross alone


def test_relative_colors_show_the_shape_and_absolute_ones_the_height(image: NDArray[np.uint8]) -> None:
    for colors, least, most in (("relative", 0, 2), ("rescaled", 0, 2), ("absolute", 5, 255)):
        low, high = (drawn(image, blob(peak), colors)[20:64, 20:64] for peak in (0.2, 0.4))  # type: ignore[arg-type]
        assert least <= np.abs(low - high).mean() <= most, colors


def test_pictures_with_unknown_choices_are_refused(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    for options, message in (({"colors": "loud"}, "colors must be one of"), ({"opacity": 1.5}, "opacity must lie in")):
        with pytest.raises(DensescoreError, match=message):
            draw_overlay(image, blob(0.5), "x", tmp_path / "x.png", **options)
    assert not (tmp_path / "x.png").exists()


def test_classes_whose_names_are_alike_have_a_map_each(
    tmp_path: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "densescore.results.heatmaps.draw_overlay", lambda *x, **_: Path(x[3]).write_text(as_text(x[2]))
    )
    labels = ("a_b", "a_b-3", "a/b", "A B", "crane", "crane", "con", "x" * 300, "é\ud800", "$x^2$", "a_b-2", "_sheet")
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
    assert SHEET.lower() not in files
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
