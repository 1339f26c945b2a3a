"""Scores show themselves, as pictures, a line and HTML, and hold their photograph only where that is cheap."""

import base64
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from densescore import DensescoreError, DenseScorer, DenseScores, Pyramid, score_many
from densescore.results.overlay import draw_overlay
from densescore.results.sheet import arrange

LABELS = ("dog", "a<b>&", "cat\n\u202e")


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


def test_one_call_draws_and_one_saves_what_the_command_draws(
    scores: DenseScores, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    draw_overlay(photo, scores, "dog", tmp_path / "command.png")
    scores.save_heatmap(tmp_path / "dog.png", "dog")
    figure: Any = scores.plot("dog")
    expected = pixels_of(tmp_path / "command.png")
    assert expected.std() > 20
    for found in (tmp_path / "dog.png", figure._repr_png_(), scores._repr_png_() or b""):
        np.testing.assert_array_equal(pixels_of(found), expected)
    other: Any = scores.plot("a<b>&")
    assert not np.array_equal(pixels_of(other._repr_png_()), expected)
    scores.save_heatmap(tmp_path / "dog.JPG", "dog", colors="absolute", opacity=0.2, colormap="magma")
    assert Image.open(tmp_path / "dog.JPG").format == "JPEG"
    assert np.abs(pixels_of(tmp_path / "dog.JPG").astype(float) - expected).mean() > 5


def test_a_picture_on_axes_of_ones_own_is_in_pixels_of_the_image(scores: DenseScores) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert scores.plot("dog", ax=right) is figure
    assert not left.images
    assert (right.get_xlim(), right.get_ylim()) == ((0, 90), (60, 0))
    (cross,) = right.lines
    (place,) = scores.locate("dog")
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (place.x, place.y)


def test_a_large_photograph_is_drawn_small_in_its_own_pixels() -> None:
    pyramid = Pyramid.of(1500, 4000, scales=(1, 2), patch=20, stride=10)
    values = torch.zeros(len(pyramid), 1)
    values[-1] = 1  # the patch below, right
    scores = DenseScores(values, ("x",), pyramid)
    axes: Any = Figure().add_subplot()
    scores.plot("x", image=np.zeros((1500, 4000, 3), np.uint8), ax=axes)
    assert max(max(image.get_size()) for image in axes.images) <= 1000
    assert axes.get_xlim() == (0, 4000)
    x, y = axes.lines[0].get_xydata()[0]
    (place,) = scores.locate("x")
    assert (x, y) == pytest.approx((place.x, place.y), abs=4)
    (frame,) = axes.patches
    assert frame.get_x() + frame.get_width() > 3900


def test_what_cannot_be_drawn_is_refused(scores: DenseScores, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: scores.plot("dgo"), "did you mean dog"),
        (lambda: scores.plot(colors="loud"), "colors must be one of"),  # type: ignore[arg-type]
        (lambda: scores.plot(opacity=2), "opacity must lie in"),
        (lambda: scores.plot(colormap="torbo"), "none named 'torbo'"),
        (lambda: scores.plot(ax=Figure().add_subplot(), opacity=2), "opacity must lie in"),
        (lambda: scores.plot_sheet([]), "at least one class"),
        (lambda: scores.plot_sheet(["dgo"]), "did you mean dog"),
        (lambda: scores.plot_sheet(colors="rescaled"), "one scale"),
        (lambda: scores.plot(image=np.zeros((60, 91, 3), np.uint8)), r"expected the \(60, 90\) pixels"),
        (lambda: scores.save_heatmap(tmp_path / "dog"), r"ends in one of .*\.png"),
        (lambda: scores.save_heatmap(tmp_path / "dog.txt"), r"dog\.txt: .*ends in one of"),
    ]
    for call, message in cases:
        with pytest.raises(DensescoreError, match=message):
            call()
    scores.save_heatmap(tmp_path / "dog.png")
    with pytest.raises(DensescoreError, match="exists already"):
        scores.save_heatmap(tmp_path / "dog.png")
    assert [path.name for path in tmp_path.iterdir()] == ["dog.png"]


def test_the_photograph_itself_is_never_written_over(
    toy_scorer: DenseScorer, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "dog.png"
    Image.fromarray(photo).save(path)
    before = path.read_bytes()
    for scores, image in ((toy_scorer.score(path), None), (toy_scorer.score(photo), path)):
        with pytest.raises(DensescoreError, match="this run needs"):
            scores.save_heatmap(path, image=image, overwrite=True)
    assert path.read_bytes() == before


def test_a_sheet_is_on_one_scale(scores: DenseScores) -> None:
    figure = scores.plot_sheet(["dog", "a<b>&"])
    photograph, dog, faint, *_ = figure.axes
    assert [len(axes.images) for axes in (photograph, dog, faint)] == [1, 2, 2]
    norms = [axes.images[1].norm for axes in (dog, faint)]
    assert norms[0].vmax == norms[1].vmax == pytest.approx(float(scores.shrunk_map("dog").max()))
    colored = [(np.asarray(axes.images[1].get_alpha()) > 0.1).mean() for axes in (dog, faint)]
    assert colored[0] > 0.05
    assert colored[1] == 0  # a tenth of the other
    assert [len(axes.patches) for axes in (dog, faint)] == [1, 0]  # no frame either
    assert faint.get_title().startswith("a<b>&\nconfidence 0.0")
    assert len(scores.plot_sheet().axes) == 1 + 3 + 1  # the photograph, all classes, the color bar
    assert len(scores.plot_sheet(top=1).axes) == 1 + 1 + 1


@pytest.mark.parametrize("aspect", [0.02, 0.5, 1.0, 1.5, 40.0])
@pytest.mark.parametrize("count", [2, 3, 7, 41])
def test_panels_fit_a_screen(count: int, aspect: float) -> None:
    columns, width = arrange(count, aspect)
    rows = -(-count // columns)
    assert 1 <= columns <= count
    assert (rows - 1) * columns < count
    assert columns * width <= 1800 + 1e-6
    if count < 41:
        assert rows * (width / aspect + 42) <= 1000 + 1e-6


def test_a_line(scores: DenseScores) -> None:
    dog, faint, cat = (f"{value:.2g}" for value in scores.confidence())
    assert repr(scores) == (
        f"DenseScores('toy'; {len(scores)} patches of a 60×90 image at scales 1, 2; best "
        rf"'dog' {dog}, 'a<b>&' {faint}, 'cat\n\u202e' {cat})"
    )
    single = DenseScores(torch.ones(1, 1), ("background",), Pyramid.of(20, 20, scales=(1,), patch=20, stride=4))
    assert repr(single) == "DenseScores(''; 1 patch of a 20×20 image at scale 1; best 'background' 1)"


def test_html_for_notebooks(scores: DenseScores, photo: NDArray[np.uint8]) -> None:
    text = scores._repr_html_()
    assert "a&lt;b&gt;&amp;" in text
    assert "a<b>&" not in text
    cells = re.findall(r"<td>([\d.e-]+)</td>", text)
    (best,) = scores.top(1)
    expected = (best.confidence, best.best_patch, best.score)
    assert [float(cell) for cell in cells[:3]] == [pytest.approx(value, rel=0.06) for value in expected]
    assert not [cell for cell in cells if float(cell) == 0]
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    shown = pixels_of(base64.b64decode(data)).astype(float)
    assert np.abs(shown - pixels_of(scores._repr_png_() or b"")).mean() < 6


def test_without_the_photograph_there_is_no_picture_and_image_brings_it(
    toy_scorer: DenseScorer, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "<i>photo.png"
    Image.fromarray(photo).save(path)
    given = toy_scorer.score(path)
    given.save(tmp_path / "scores.safetensors")
    loaded = DenseScores.load(tmp_path / "scores.safetensors")
    pickled = pickle.loads(pickle.dumps(toy_scorer.score(photo)))
    for scores in (loaded, pickled):
        assert scores.source is None
        assert torch.equal(scores.patch_scores, given.patch_scores)
        assert scores._repr_png_() is None
        assert "<img" not in scores._repr_html_()
        with pytest.raises(DensescoreError, match="pass it as image="):
            scores.plot()
        figures: list[Any] = [scores.plot(image=path), given.plot()]
        first, second = (pixels_of(figure._repr_png_()) for figure in figures)
        np.testing.assert_array_equal(first, second)
    path.unlink()  # the scores outlive the file
    assert given._repr_png_() is None
    assert "&lt;i&gt;photo.png: cannot be read" in given._repr_html_()
    with pytest.raises(DensescoreError, match="cannot be read"):
        given.plot()
    Image.fromarray(photo[:50]).save(path)
    with pytest.raises(DensescoreError, match=r"photo\.png: expected the \(60, 90\) pixels that were scored, got \(50"):
        given.plot()


def test_only_a_single_image_is_held_and_without_a_copy(
    toy_scorer: DenseScorer, photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.shares_memory(toy_scorer.score(photo).photograph(), photo)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    forms: list[Any] = [
        photo,
        buffer.getvalue(),
        buffer,
        Image.fromarray(photo),
        torch.from_numpy(photo.transpose(2, 0, 1)),
    ]
    for form in forms:
        buffer.seek(0)
        scores = toy_scorer(form)
        np.testing.assert_array_equal(scores.photograph(), photo)
    assert [scores.source for scores in toy_scorer.score_batch(forms[:2])] == [None, None]
    assert [item.scores.source for item in score_many(forms[:2], toy_scorer) if item.scores] == [None, None]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("photo.png")
    path = str(tmp_path / "photo.png")  # a path costs nothing
    assert toy_scorer.score("photo.png").source == path
    assert [scores.source for scores in toy_scorer.score_batch(["photo.png", photo])] == [path, None]
    (item,) = score_many([Path("photo.png")], toy_scorer)
    assert item.scores is not None
    monkeypatch.chdir(tmp_path.parent)
    np.testing.assert_array_equal(item.scores.photograph(), photo)
