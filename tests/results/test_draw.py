"""Pictures of scores: heatmaps on photographs, sheets, color bars, notebooks; the photograph is held only if cheap."""

import base64
import io
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from densescore import DensescoreError, DenseScorer, DenseScores, Pyramid, export_heatmaps, score_many
from densescore.models.calibration import Calibration, ClassCalibration, Curve
from densescore.results.draw import Colors, Picture, Style, add_colorbar, arrange, canvas_size, draw_frame, paint

LABELS = ("dog", "a<b>&", "cat\n\u202e")
GRAY = np.full((90, 130, 3), 128, np.uint8)
RANGES = [(0, 1), (0, 0.18), (0, 3e-9), (0.1234561, 0.1234569), (0.00174, 0.0018), (0.5, 0.5), (0.9, 0.99999)]


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(10, 0).repeat(10, 1)


@pytest.fixture
def scores(photo: NDArray[np.uint8]) -> DenseScores:
    pyramid = Pyramid.of(60, 90, scales=(1, 2), patch=20, stride=4)
    values = torch.rand(len(pyramid), 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 1e-4])
    return DenseScores(values, LABELS, pyramid, model="toy", source=photo)


def pixels_of(picture: bytes | Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture).convert("RGB"))


def blob(high: float, x: int = 20, y: int = 20) -> DenseScores:
    """Patches of 20 pixels every 4 on a 90×130 image: a square of them scores `high`, the others nothing."""
    pyramid = Pyramid.of(90, 130, patch_sizes=(20,), patch=20, stride=4)
    (level,) = pyramid.levels
    cells = torch.zeros(level.rows, level.cols)
    cells[y // 4 : y // 4 + 6, x // 4 : x // 4 + 6] = high
    return DenseScores(cells.reshape(-1, 1), ("x",), pyramid)


def change(scores: DenseScores, colors: Colors = "relative") -> NDArray[np.float64]:
    """What the heatmap adds to the gray photograph: [H, W, 3]."""
    return paint(GRAY, scores.class_map("x", 1000), Style(colors), (130, 90), marks=False).astype(float) - GRAY


@pytest.mark.parametrize("high", [0.1, 0.3, 0.9])
@pytest.mark.parametrize(("x", "y"), [(8, 8), (72, 36)])
def test_only_the_response_is_colored(high: float, x: int, y: int) -> None:
    colored = np.abs(change(blob(high, x, y))).sum(2)
    assert colored[y + 17 : y + 27, x + 17 : x + 27].min() > 60  # the object is colored, at any height of its peak
    colored[max(y - 10, 0) : y + 54, max(x - 10, 0) : x + 54] = 0
    assert colored.max() < 3


def test_absent_classes_are_not_drawn(photo: NDArray[np.uint8]) -> None:
    for high in (0, 0.001, 0.05):
        view = blob(high).class_map("x", 1000)
        assert view.title == "no x"
        np.testing.assert_array_equal(paint(GRAY, view, Style(), (130, 90)), GRAY)
    assert re.fullmatch(r"x, confidence 0.\d\d", blob(0.9).class_map("x", 1000).title)


def test_boxes_are_framed_from_a_probability_on() -> None:
    """Two regions of peaks 0.9 and 0.6: boxes of 90 % and 60 % of the class's probability."""
    two = replace(blob(0.9), patch_scores=torch.maximum(blob(0.9).patch_scores, blob(0.6, 90, 40).patch_scores))
    certain = Calibration(shared=ClassCalibration(Curve.line(0, 2.2)))  # always 0.9
    for calibration, expected in (
        (certain, {0.0: 2, 0.25: 2, 0.7: 1, 0.95: 0}),
        (None, {0.0: 1, 0.95: 1}),  # without probabilities the best box
    ):
        view = replace(two, calibration=calibration).class_map("x", 1000)
        assert view.title == ("x 90 %" if calibration else f"x, confidence {view.certainty:.2g}")
        bare = paint(GRAY, replace(view, boxes=()), Style(), (520, 360))
        for least, count in expected.items():
            painted = paint(GRAY, view, Style(min_confidence=least), (520, 360))
            boxes = paint(GRAY, replace(view, boxes=view.boxes[:count]), Style(min_confidence=0), (520, 360))
            np.testing.assert_array_equal(painted, boxes if count else bare)
            assert (painted != bare).any() == bool(count)
    with pytest.raises(DensescoreError, match=r"min_confidence must lie in \[0, 1\], got 2"):
        Style(min_confidence=2)


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_marks_are_seen_on_any_photograph(shade: int) -> None:
    """White inside a dark outline: the box, and the cross at the peak."""
    view = blob(0.9).class_map("x", 1000)
    marked = paint(np.full_like(GRAY, shade), view, Style(opacity=0), (520, 360)).astype(int).sum(2) / 3
    x, y, box = round(4 * view.place.x), round(4 * view.place.y), view.boxes[0].box
    for near in (marked[y - 8 : y + 9, x - 8 : x + 9], marked[:, 4 * box[0] - 3 : 4 * box[0] + 4]):
        assert near.max() > 220
        assert near.min() < 30


@pytest.mark.parametrize(("colors", "least", "most"), [("relative", 0, 2), ("rescaled", 0, 2), ("absolute", 5, 255)])
def test_relative_colors_show_the_shape_and_absolute_ones_the_height(colors: Colors, least: int, most: int) -> None:
    low, high = (change(blob(peak), colors)[20:64, 20:64] for peak in (0.2, 0.4))
    assert np.abs(low).mean() > 5
    assert least <= np.abs(low - high).mean() <= most


def test_frames_of_a_video_share_one_scale() -> None:
    """A map below what is colored at the video's peak is not drawn."""
    scores, size = blob(0.4), canvas_size(90, 130)
    assert size == (332, 480)
    view = scores.class_map("x", 1000)
    strong, weak, silent = (draw_frame(GRAY, view, 1.5, size, Style(), peak) for peak in (0.4, 0.6, 4.0))
    assert strong.shape == (360, 480, 3)
    colored = [np.abs(frame[:332].astype(int) - 128).mean() for frame in (strong, weak, silent)]
    assert colored[0] > 1.5 * colored[1] > 0
    assert colored[2] == 0
    assert strong[332:].max() > 200  # the line of text


def test_all_ways_draw_the_same_picture(scores: DenseScores, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    export_heatmaps(scores, photo, ["dog"], tmp_path / "maps")
    expected = pixels_of(tmp_path / "maps" / "dog.png")
    assert expected.std() > 20
    scores.save_heatmap(tmp_path / "dog.png", "dog")
    figure: Any = scores.plot("dog")
    for picture in (tmp_path / "dog.png", figure._repr_png_(), scores._repr_png_() or b""):
        np.testing.assert_array_equal(pixels_of(picture), expected)
    other: Any = scores.plot("a<b>&")
    assert not np.array_equal(pixels_of(other._repr_png_()), expected)
    scores.save_heatmap(tmp_path / "dog.JPG", "dog", colors="absolute", opacity=0.2, colormap="magma")
    assert Image.open(tmp_path / "dog.JPG").format == "JPEG"
    assert np.abs(pixels_of(tmp_path / "dog.JPG").astype(float) - expected).mean() > 5


def test_axes_are_in_pixels_of_a_large_photograph() -> None:
    pyramid = Pyramid.of(1500, 4000, scales=(1, 2), patch=20, stride=10)
    values = torch.zeros(len(pyramid), 1)
    values[-1] = 1  # the patch below, right
    scores, figure = DenseScores(values, ("x",), pyramid), Figure()
    left, right = figure.subplots(1, 2)
    assert scores.plot("x", image=np.zeros((1500, 4000, 3), np.uint8), ax=right) is figure
    assert not left.images
    assert max(max(image.get_size()) for image in right.images) <= 1000
    assert (right.get_xlim(), right.get_ylim()) == ((0, 4000), (1500, 0))
    marked = np.nonzero(np.asarray(right.images[0].get_array()).min(2) > 200)  # rows, columns of white
    assert 4 * marked[1].max() > 3900  # the box ends where the patch does


def test_wrong_arguments_raise(scores: DenseScores, tmp_path: Path) -> None:
    scores.save_heatmap(tmp_path / "dog.png")
    cases: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (scores.plot, {"label": "dgo"}, "did you mean dog"),
        (scores.plot, {"colors": "loud"}, "colors must be one of"),
        (scores.plot, {"opacity": 2}, "opacity must lie in"),
        (scores.plot, {"opacity": 2, "ax": Figure().add_subplot()}, "opacity must lie in"),
        (scores.plot, {"colormap": "torbo"}, "none named 'torbo'"),
        (scores.plot, {"image": np.zeros((60, 91, 3), np.uint8)}, r"expected the \(60, 90\) pixels"),
        (scores.plot_sheet, {"labels": []}, "at least one class"),
        (scores.plot_sheet, {"labels": ["dgo"]}, "did you mean dog"),
        (scores.plot_sheet, {"colors": "rescaled", "shared_scale": True}, "its own scale"),
        (scores.save_heatmap, {"path": tmp_path / "dog"}, r"ends in one of .*\.png"),
        (scores.save_heatmap, {"path": tmp_path / "dog.txt"}, r"dog\.txt: .*ends in one of"),
        (scores.save_heatmap, {"path": tmp_path / "dog.png"}, "exists already"),
    ]
    for draw, options, message in cases:
        with pytest.raises(DensescoreError, match=message):
            draw(**options)
    assert [path.name for path in tmp_path.iterdir()] == ["dog.png"]


def test_the_photograph_is_never_overwritten(toy_scorer: DenseScorer, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    Image.fromarray(photo).save(path)
    before = path.read_bytes()
    for scores, image in ((toy_scorer.score(path), None), (toy_scorer.score(photo), path)):
        with pytest.raises(DensescoreError, match="this run needs"):
            scores.save_heatmap(path, image=image, overwrite=True)
    assert path.read_bytes() == before


def test_a_sheet_has_a_scale_for_each_panel_or_one_of_all(scores: DenseScores, photo: NDArray[np.uint8]) -> None:
    def titles(figure: Any) -> list[str]:
        return [axes.get_title() for axes in figure.axes if axes.get_title()]

    def numbers(figure: Any) -> list[str]:
        bars = [axes.child_axes for axes in figure.axes] + [[axes] for axes in figure.axes if not axes.get_title()]
        return [label.get_text() for bar in bars for axes in bar for label in axes.get_yticklabels()]

    expected = {label: f"{float(scores.heatmap(label).max()):.2g}" for label in LABELS}
    figure = scores.plot_sheet(["dog", "a<b>&", LABELS[2]])
    said = [f"confidence {value:.2g}" for value in scores.confidence()]
    assert titles(figure) == ["the photograph", f"dog, {said[0]}", f"a<b>&, {said[1]}", "no cat \u202e"]
    assert numbers(figure) == [expected["dog"], expected["a<b>&"]]
    gray = np.asarray(figure.axes[3].images[0].get_array())
    assert (gray.max(2) == gray.min(2)).all()  # an absent class
    shared = scores.plot_sheet(["dog", "a<b>&"], shared_scale=True)
    assert numbers(shared) == [expected["dog"]]
    plain, faint = (np.asarray(shared.axes[index].images[0].get_array()).astype(int) for index in (0, 2))
    assert np.abs(faint - plain).mean() < 1  # a tenth of the other
    assert numbers(scores.plot_sheet(["dog"], colorbar=False)) == []


@pytest.mark.parametrize("label", ["x" * 300, "a name of many words " * 6])
def test_titles_are_not_cut(label: str, photo: NDArray[np.uint8], scores: DenseScores) -> None:
    named = replace(scores, labels=(label, *LABELS[1:]))
    for figure in (cast("Picture", named.plot(label)), named.plot_sheet(top=3)):
        figure.draw_without_rendering()
        boxes = [axes.title.get_window_extent() for axes in figure.axes]
        assert min(box.x0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= figure.bbox.x1
        assert max(box.y1 for box in boxes) <= figure.bbox.y1


def test_overlays_are_the_photograph_and_the_heat(scores: DenseScores, photo: NDArray[np.uint8]) -> None:
    drawn = scores.overlay("dog").astype(int)
    assert drawn.shape == photo.shape
    heat = scores.heatmap("dog")[0].numpy()
    changed = np.abs(drawn - photo).sum(2)
    assert (changed[heat < 0.39 * heat.max()] == 0).all()
    assert changed[heat > 0.8 * heat.max()].min() > 0
    np.testing.assert_array_equal(scores.overlay("dog", opacity=0), photo)
    np.testing.assert_array_equal(scores.overlay(LABELS[2]), photo)  # absent


@pytest.mark.parametrize("aspect", [0.02, 0.5, 1.0, 1.5, 40.0])
@pytest.mark.parametrize("count", [2, 3, 7, 41])
def test_panels_fit_a_screen(count: int, aspect: float) -> None:
    columns, width = arrange(count, aspect)
    rows = -(-count // columns)
    assert (rows - 1) * columns < count
    assert columns * width <= 1800 + 1e-6
    if count < 41:
        assert rows * (width / aspect + 42) <= 1000 + 1e-6


def test_repr(scores: DenseScores) -> None:
    dog, faint, cat = (f"{value:.2g}" for value in scores.confidence())
    assert repr(scores) == (
        f"DenseScores('toy'; {len(scores)} patches of a 60×90 image at scales 1, 2; best "
        rf"'dog' {dog}, 'a<b>&' {faint}, 'cat\n\u202e' {cat})"
    )
    single = DenseScores(torch.ones(1, 1), ("background",), Pyramid.of(20, 20, scales=(1,), patch=20, stride=4))
    assert repr(single) == "DenseScores(''; 1 patch of a 20×20 image at scale 1; best 'background' 1)"


def test_notebook_html(scores: DenseScores, photo: NDArray[np.uint8]) -> None:
    text = scores._repr_html_()
    assert "a&lt;b&gt;&amp;" in text
    assert "a<b>&" not in text
    cells = re.findall(r"<td>([\d.e-]+)</td>", text)
    best = scores.top(1)[0]
    expected = [best.confidence, best.best_patch, best.score]
    assert [float(cell) for cell in cells[:3]] == pytest.approx(expected, rel=0.06)
    assert all(map(float, cells))
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    shown = pixels_of(base64.b64decode(data)).astype(float)
    assert np.abs(shown - pixels_of(scores._repr_png_() or b"")).mean() < 6


def test_loaded_and_pickled_scores_need_the_photograph(
    toy_scorer: DenseScorer, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "<i>photo.png"
    Image.fromarray(photo).save(path)
    fresh = toy_scorer.score(path)
    fresh.save(tmp_path / "scores.safetensors")
    loaded = DenseScores.load(tmp_path / "scores.safetensors")
    pickled = pickle.loads(pickle.dumps(toy_scorer.score(photo)))
    for scores in (loaded, pickled):
        assert scores.source is None
        assert torch.equal(scores.patch_scores, fresh.patch_scores)
        assert scores._repr_png_() is None
        assert "<img" not in scores._repr_html_()
        with pytest.raises(DensescoreError, match="pass it as image="):
            scores.plot()
        figure: Any = scores.plot(image=path)
        np.testing.assert_array_equal(pixels_of(figure._repr_png_()), pixels_of(fresh._repr_png_() or b""))
    path.unlink()  # the scores outlive the file
    assert fresh._repr_png_() is None
    assert "&lt;i&gt;photo.png: cannot be read" in fresh._repr_html_()
    Image.fromarray(photo[:50]).save(path)
    with pytest.raises(DensescoreError, match=r"photo\.png: expected the \(60, 90\) pixels that were scored, got \(50"):
        fresh.plot()


def test_only_a_single_image_is_held_without_a_copy(
    toy_scorer: DenseScorer, photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.shares_memory(toy_scorer.score(photo).photograph(), photo)
    path, picture = tmp_path / "photo.png", Image.fromarray(photo)
    picture.save(path)
    content = path.read_bytes()
    tensor = torch.from_numpy(photo.transpose(2, 0, 1))
    forms: list[Any] = [photo, content, io.BytesIO(content), picture, tensor]
    for form in forms:
        np.testing.assert_array_equal(toy_scorer(form).photograph(), photo)
    assert [scores.source for scores in toy_scorer.score_batch(forms[:2])] == [None, None]
    assert [item.scores.source for item in score_many(forms[:2], toy_scorer) if item.scores] == [None, None]
    monkeypatch.chdir(tmp_path)  # a path costs nothing
    assert [scores.source for scores in toy_scorer.score_batch(["photo.png", photo])] == [str(path), None]
    (item,) = score_many([Path("photo.png")], toy_scorer)
    assert item.scores is not None
    monkeypatch.chdir(tmp_path.parent)
    np.testing.assert_array_equal(item.scores.photograph(), photo)


@pytest.mark.parametrize("limits", RANGES)
@pytest.mark.parametrize("norm", [Normalize, PowerNorm])
def test_a_color_bar_has_one_number(limits: tuple[float, float], norm: Any) -> None:
    figure = Picture(400, 300)
    scale = norm(0.5, *limits) if norm is PowerNorm else norm(*limits)
    bar = add_colorbar(figure, [figure.add_subplot()], scale, Style())
    figure.canvas.draw()
    texts = [label.get_text() for label in bar.ax.get_yticklabels() if label.get_text()]
    assert [float(text) for text in texts] == ([] if limits[0] == limits[1] else [pytest.approx(limits[1], rel=0.1)])
    assert bar.ax.yaxis.get_offset_text().get_text() == ""
