"""Images read by windows: pixels, scores and maps equal those of the whole; a killed run resumes."""

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from densescore import DensescoreError, DenseScorer, Pyramid
from densescore.cli.main import app
from densescore.io.images import level_pixels, read_image
from densescore.io.names import as_text, from_text
from densescore.models.labels import imagenet_labels
from tests.cli.runner import CliRunner
from tests.conftest import Toy

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

from densescore.jobs.huge import open_huge, resampling, score_huge, source  # noqa: E402
from densescore.jobs.huge.maps import MapView, scaled  # noqa: E402
from densescore.jobs.huge.places import ground_of  # noqa: E402
from densescore.network.surgery import to_dense  # noqa: E402


class Padded(Toy):
    """A network with padding and a strided pool last: stride 8, and cells that see past their windows."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(8, 6, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(6 * 9, 10), nn.ReLU(), nn.Linear(10, 3))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)


SMALL = {"plain": 2e-4, "padded": 8e-4}  # GB: tiles of about 70 and 140 pixels


def scorer_of(network: str, **options: Any) -> DenseScorer:
    module, patch = {"plain": (Toy(), 20), "padded": (Padded(), 32)}[network]
    return DenseScorer(module, labels=("a", "b", "c"), patch_size=patch, runtime="torch", **options)


@pytest.fixture
def coffee_tiff(tmp_path: Path, coffee: NDArray[np.uint8]) -> Path:
    path = tmp_path / "coffee.tif"
    tifffile.imwrite(path, coffee[:301, :433], tile=(64, 64), compression="zlib", photometric="rgb")
    return path


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scale=st.one_of(st.floats(0.4, 9), st.sampled_from([1.0, 2.0, 0.5])),
    corner=st.tuples(*[st.floats(0, 1)] * 4),
    floats=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_window_of_a_level_is_cut_from_the_whole(
    size: tuple[int, int], scale: float, corner: tuple[float, ...], floats: bool, seed: int
) -> None:
    image: Any = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = (image / np.float32(255)).astype(np.float32) if floats else image
    pyramid = Pyramid.of(*size, scales=(scale,), patch=20, stride=4, max_cells=10**9)
    (level,) = pyramid.levels
    whole = level_pixels(image, pyramid, level)
    y0, y1 = sorted(int(at * (whole.shape[0] - 1)) for at in corner[:2])
    x0, x1 = sorted(int(at * (whole.shape[1] - 1)) for at in corner[2:])
    y1, x1 = y1 + 1, x1 + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "BAND_BYTES", 5000)
        window = resampling.level_window(lambda a, b, c, d: image[a:b, c:d], pyramid, level, y0, y1, x0, x1)
    expected = whole[y0:y1, x0:x1]
    assert window.dtype == image.dtype
    if floats:
        np.testing.assert_allclose(window, expected, rtol=0, atol=1e-5)  # OpenCV enlarges floats from places in float32
    elif platform.machine() in ("x86_64", "AMD64"):
        np.testing.assert_array_equal(window, expected)
    else:  # OpenCV may join a product and a sum there, which moves a few pixels to the next byte
        np.testing.assert_allclose(window.astype(int), expected.astype(int), atol=1)


def test_a_group_of_classes_is_mapped_by_its_sum(coffee_tiff: Path, tmp_path: Path) -> None:
    labels = imagenet_labels()
    scorer = DenseScorer(Toy(1000), labels=labels, patch_size=20, patch_sizes=(32, 61.5), runtime="torch")
    whole = scorer.score(tifffile.imread(coffee_tiff))
    progress: dict[str, tuple[int, int]] = {}

    def track(items: Sequence[Any], text: str) -> Iterable[Any]:
        for begun, item in enumerate(items, 1):
            progress[text] = begun, len(items)
            yield item

    result = score_huge(scorer, coffee_tiff, tmp_path / "out", classes=["Insect", "pug"], memory=2e-4, track=track)
    for entry, label in zip(result["classes"], ["insect", "pug"], strict=True):
        chosen = whole.select(label)
        assert entry["label"] == label
        assert entry["image_score"] == pytest.approx(chosen.image_scores().item(), rel=1e-4)
        written = tifffile.imread(tmp_path / "out" / "maps" / f"{label}.tif")
        np.testing.assert_allclose(written, chosen.response_map()[0], rtol=1e-4)
        picture = read_image(tmp_path / "out" / entry["picture"]).astype(int)
        chosen.save_heatmap(tmp_path / "whole.png", label, image=coffee_tiff, overwrite=True)
        assert np.abs(picture - read_image(tmp_path / "whole.png")).mean() < 0.5
    assert result["classes"][0]["response_map_peak"] > 5 * result["classes"][1]["response_map_peak"]
    assert list(progress) == ["tiles", "image scores", "map 1 of 2", "map 2 of 2"]
    assert progress["tiles"][0] == result["tiles"]
    assert progress["image scores"][0] > len(result["geometry"]["levels"])  # every block of every level
    assert all(begun == count > 0 for begun, count in progress.values())


def test_a_class_whose_scores_are_all_zero(coffee_tiff: Path, tmp_path: Path) -> None:
    toy = Toy()
    with torch.no_grad():
        toy.classifier[-1].bias[1] = -1e4  # type: ignore[operator]
    scorer = DenseScorer(toy, labels=("a", "b", "c"), patch_size=20, patch_sizes=(32,), runtime="torch")
    result = score_huge(scorer, coffee_tiff, tmp_path / "out", classes=["b"], memory=SMALL["plain"])
    (entry,) = result["classes"]
    assert [entry["image_score"], entry["confidence"], entry["response_map_peak"]] == [0, 0, 0]
    assert {patch["share"] for patch in entry["best_patches"]} == {1 / len(scorer.score(coffee_tiff))}
    last = result["top"][-1]
    assert (last["label"], last["score"], last["confidence"], last["best_patch"]) == ("b", 0, 0, 0)
    assert "NaN" not in (tmp_path / "out/result.json").read_text()


@pytest.mark.parametrize("network", ["plain", "padded"])
@pytest.mark.parametrize("options", [{}, {"finer": 2}], ids=["own stride", "half the stride"])
def test_tiles_equal_one_piece(network: str, options: dict[str, int], coffee_tiff: Path, tmp_path: Path) -> None:
    stride = {"plain": 4, "padded": 8}[network] // options.get("finer", 1)
    scorer = scorer_of(network, patch_sizes=(15, 32, 61.5), stride=stride)
    whole = scorer.score(tifffile.imread(coffee_tiff))
    result = score_huge(scorer, coffee_tiff, tmp_path / "out", classes=["b", "c"], memory=SMALL[network])
    assert result["tiles"] > 25
    group = zarr.open_group(tmp_path / "out" / "scores.zarr", mode="r")
    assert whole.patch_scores.std() > 0.01
    for index, level in enumerate(whole.levels):
        tiled = torch.from_numpy(group[str(index)][:]).flatten(0, 1)
        torch.testing.assert_close(tiled, whole.patch_scores[level.cells], rtol=1e-4, atol=1e-6)
    for name, entry in zip("bc", result["classes"], strict=True):
        expected = whole.response_map([name])[0].numpy()
        np.testing.assert_allclose(tifffile.imread(tmp_path / "out" / entry["response_map"]), expected, rtol=1e-4)
        assert entry["image_score"] == pytest.approx(float(whole.image_scores()[whole.index(name)]), rel=1e-4)
        assert entry["confidence"] == pytest.approx(float(whole.confidence()[whole.index(name)]), rel=1e-4)
        assert entry["response_map_peak"] == pytest.approx(float(expected.max()), rel=1e-4)
        best = int(whole.patch_scores[:, whole.index(name)].argmax())
        assert entry["best_patches"][0]["box"] == pytest.approx(whole.boxes[best].tolist(), abs=0.02)
    for entry, ranked in zip(result["top"], whole.top(), strict=True):
        assert entry.pop("label") == ranked.label
        assert entry == pytest.approx({name: getattr(ranked, name) for name in entry}, rel=1e-4)
        assert entry.keys() == {"score", "confidence", "best_patch"}


def test_the_reach_of_layers() -> None:
    assert scorer_of("plain").dense.reach == (0, 0)
    # 5×5 and 3×3 convolutions padded by 2, 1·2, 1·4 pixels: 8 before, and a stride is 8. After the window, whose pool
    # ends a pixel of its map before the map does, 7 of them.
    assert scorer_of("padded").dense.reach == (1, 1)
    squeeze = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Squeeze(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(DensescoreError, match="depend on the whole level"):
        _ = to_dense(squeeze, 16).reach


class Squeeze(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean((2, 3), keepdim=True)


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.jobs.huge.test_huge import scorer_of
from densescore.jobs.huge import score_huge
from densescore.jobs.huge.scoring import Job

def track(items, what):
    for number, item in enumerate(items):
        if number == 3:
            store = Job.store
            def half(job, tile, scores):  # the scores are written, the journal is not
                job._journal = job.folder / "elsewhere"
                store(job, tile, scores * 0)
                (job.folder / "elsewhere").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            Job.store = half
        yield item

score_huge(scorer_of("padded", patch_sizes=(32,)), {image!r}, {folder!r}, memory=2e-4, track=track)
"""


def test_a_killed_run_resumes_to_the_same_result(coffee_tiff: Path, tmp_path: Path) -> None:
    scorer = scorer_of("padded", patch_sizes=(32,))
    whole = score_huge(scorer, coffee_tiff, tmp_path / "whole", memory=2e-4)
    folder = tmp_path / "killed"
    script = KILLED.format(root=str(Path(__file__).parents[3]), image=str(coffee_tiff), folder=str(folder))
    for run in (1, 2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        assert len((folder / "done").read_text().split()) == 3 * run
        assert not (folder / "result.json").exists()
    resumed = score_huge(scorer, coffee_tiff, folder, memory=2e-4)
    assert resumed["tiles_scored_now"] == whole["tiles"] - 6
    assert resumed | {"seconds": 0, "tiles_scored_now": 0} == whole | {"seconds": 0, "tiles_scored_now": 0}
    arrays = [zarr.open_group(at / "scores.zarr", mode="r")["0"][:] for at in (tmp_path / "whole", folder)]
    np.testing.assert_array_equal(*arrays)
    assert json.loads((folder / "result.json").read_text())["top"] == whole["top"]


def test_jobs_are_not_mixed(coffee_tiff: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    score_huge(scorer_of("plain", patch_sizes=(60,)), coffee_tiff, folder)
    other = scorer_of("plain", patch_sizes=(80,))
    with pytest.raises(DensescoreError, match="made with another cells_per_tile, geometry"):
        score_huge(other, coffee_tiff, folder)
    assert score_huge(other, coffee_tiff, folder, overwrite=True)["tiles_scored_now"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DensescoreError, match="mine: exists already, and densescore did not make it"):
        score_huge(other, coffee_tiff, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(DensescoreError, match="no class 'd'"):
        score_huge(other, coffee_tiff, tmp_path / "new", classes=["d"])
    assert not (tmp_path / "new").exists()


def test_maps_of_several_runs_have_distinct_names(coffee_tiff: Path, tmp_path: Path) -> None:
    labels = ("a/b", "a_b", "a_b\ud800 é")
    scorer = DenseScorer(Toy(), labels=labels, patch_size=20, patch_sizes=(60,), runtime="torch")
    folder, files, maps = tmp_path / "out", [], []
    for label in labels:
        result = score_huge(scorer, coffee_tiff, folder, classes=[label])
        files.append(folder / result["classes"][0]["response_map"])
    for file, label in zip(files, labels, strict=True):
        with tifffile.TiffFile(file) as opened:
            maps.append(opened.asarray())
            description = opened.pages[0].tags["ImageDescription"].value
        assert description.startswith(f"response map of {as_text(label)}: ")
    assert len({values.tobytes() for values in maps}) == 3
    stored = json.loads((folder / "result.json").read_text())
    assert [from_text(entry["label"]) for entry in stored["classes"]] == [labels[2]]
    (folder / "note.txt").write_text("mine")
    with pytest.raises(DensescoreError, match=r"did not make note\.txt"):
        score_huge(scorer, coffee_tiff, folder, overwrite=True)
    assert all(file.exists() for file in files)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which refuses writes as a full disk does")
def test_a_full_disk_keeps_the_finished_tiles(coffee_tiff: Path, tmp_path: Path) -> None:
    scorer, out = scorer_of("plain", patch_sizes=(30,)), tmp_path / "out"

    def track(items: Sequence[Any], _: str) -> Iterable[Any]:
        yield from items[:3]
        (out / "done").rename(tmp_path / "kept")
        (out / "done").symlink_to("/dev/full")
        yield items[3]

    with pytest.raises(DensescoreError, match="cannot be written: No space left on device; finished tiles are kept"):
        score_huge(scorer, coffee_tiff, out, memory=2e-4, track=track)
    (tmp_path / "kept").replace(out / "done")
    result = score_huge(scorer, coffee_tiff, out, memory=2e-4)
    assert result["tiles_scored_now"] == result["tiles"] - 3


RGB = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
FIVE = np.concatenate([RGB, RGB[..., :2]], 2)
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize(
    ("data", "options", "bands", "message"),
    [
        (FIVE, BANDS, (5,), r"bands must be one or three of 0\.\.4, got \(5,\)"),
        (RGB, {"compression": "zlib", "rowsperstrip": 150}, None, "must be decoded whole: store it in tiles"),
        ("not a picture", {}, None, "cannot be opened"),
        ("folder", {}, None, "cannot be opened"),
        (None, {}, None, "no such file"),
    ],
)
def test_images_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any, options: Any, bands: Any, message: str
) -> None:
    path = tmp_path / "image.tif"
    monkeypatch.setattr(source, "MAX_CHUNK", 10_000)
    if isinstance(data, str):
        path.mkdir() if data == "folder" else path.write_text(data)
    elif data is not None:
        tifffile.imwrite(path, data, **options)
    with pytest.raises(DensescoreError, match=rf"image\.tif: .*{message}"), open_huge(path, bands=bands):
        pytest.fail("opened")


def test_bands_choose_channels_and_a_cut_off_file_fails(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, FIVE, tile=(64, 64), **BANDS)
    with open_huge(path, bands=(2, 1, 0)) as image:
        np.testing.assert_array_equal(image.read(0, 9, 0, 9), RGB[:9, :9, ::-1])
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DensescoreError, match=r"image\.tif"), open_huge(path, bands=(0,)) as image:
        image.read(0, 150, 0, 170)


@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_coarse_map_holds_the_fine_one_at_its_pixels_centers(step: int) -> None:
    pyramid = Pyramid.of(151, 203, scales=(1, 2.3), patch=20, stride=4)
    generator = np.random.default_rng(0)
    columns = [generator.random((level.rows, level.cols), dtype=np.float32) for level in pyramid.levels]
    view, fine = MapView(columns, pyramid, step), MapView(columns, pyramid, 1)
    assert view.shape == (-(-151 // step), -(-203 // step))
    values, whole = view.window(0, view.shape[0], 0, view.shape[1]), fine.window(0, 151, 0, 203)
    np.testing.assert_allclose(view.window(2, 9, 5, 13), values[2:9, 5:13], rtol=1e-6)
    if step % 2:  # where a center is one of a pixel
        middle = whole[step // 2 :: step, step // 2 :: step]
        np.testing.assert_allclose(values[: len(middle), : middle.shape[1]], middle, rtol=1e-6)


@pytest.mark.parametrize("points", [False, True])
def test_georeferencing_stays(points: bool, tmp_path: Path) -> None:
    """A file in UTM 31N, 0.5 m a pixel; its map, at four pixels a pixel, lies on the same ground."""
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2 if points else 1, 3072, 0, 1, 32631)
    tags = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 448000.0, 5412000.0, 0.0), True),
        (34735, 3, len(keys), keys, True),
    ]
    path = tmp_path / "ground.tif"
    tifffile.imwrite(path, np.tile(RGB, (4, 4, 1)), tile=(64, 64), photometric="rgb", extratags=tags)
    scorer = scorer_of("plain", patch_sizes=(120,))
    for step in (1, 4):
        out = tmp_path / f"out{step}"
        (entry,) = score_huge(scorer, path, out, classes=["a"], map_step=step)["classes"]
        with tifffile.TiffFile(out / entry["response_map"]) as tiff:
            found = {code: tiff.pages[0].tags[code].value for code in (33550, 33922, 34735)}
            shapes = [page.shape for page in tiff.pages if page.is_tiled]
        assert shapes == ([(600, 680), (300, 340)] if step == 1 else [(150, 170)])
        assert found[33550] == (0.5 * step, 0.5 * step, 0)
        assert found[34735] == keys
        shift = (step - 1) / 2 / step if points else 0
        assert found[33922] == pytest.approx((-shift, -shift, 0, 448000, 5412000, 0))
        # The best patches, on the ground
        half = 0.25 if points else 0
        rows = [*csv.DictReader((out / "places.csv").open())]
        features = json.loads((out / "places.geojson").read_text())["features"]
        assert len(rows) == len(features) == len(entry["best_patches"])
        for row, feature, patch in zip(rows, features, entry["best_patches"], strict=True):
            assert (row["class"], feature["properties"]["score"]) == ("a", patch["score"])
            (ring,) = feature["geometry"]["coordinates"]
            x0, y0, x1, y1 = patch["box"]
            assert float(row["x1"]) == pytest.approx(x1, abs=0.06)
            assert ring[0] == ring[4] == pytest.approx([448000 + 0.5 * x0 - half, 5412000 - 0.5 * y0 + half])
            assert ring[2] == pytest.approx([448000 + 0.5 * x1 - half, 5412000 - 0.5 * y1 + half])
    rasterio = pytest.importorskip("rasterio")
    for step in (1, 4):
        with rasterio.open(path) as before, rasterio.open(tmp_path / f"out{step}/maps/a.tif") as after:
            assert after.crs == before.crs
            assert after.bounds == pytest.approx(before.bounds)
            assert after.overviews(1) == ([2] if step == 1 else [])


def test_a_georeferencing_matrix_is_scaled() -> None:
    matrix = (0.5, 0.1, 0, 100.0, 0.1, -0.5, 0, 200.0, 0, 0, 0, 0, 0, 0, 0, 1)
    ((*_, values, _),) = scaled([(34264, 12, 16, matrix, True)], 4)
    assert values == pytest.approx((2, 0.4, 0, 100, 0.4, -2, 0, 200, 0, 0, 0, 0, 0, 0, 0, 1))
    ground = ground_of([(34264, 12, 16, matrix, True)])
    assert ground is not None
    assert ground(10, 20) == pytest.approx((107, 191))
    assert ground_of([]) is None


def test_the_command(coffee_tiff: Path, tmp_path: Path) -> None:
    command = ["huge", str(coffee_tiff), "--out", str(tmp_path / "out"), "--patch-sizes", "300", "--map-step", "4"]
    first = CliRunner().invoke(app, [*command, "--classes", "espresso", "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["top"][0]["label"] in {"espresso", "cup"}
    assert tifffile.imread(tmp_path / "out" / "maps" / "espresso.tif").shape == (76, 109)
    again = CliRunner().invoke(app, [*command, "--classes", "cup"])
    assert again.exit_code == 0, again.output
    assert "cup.tif" in again.stdout
    assert "places.csv" in again.stdout
    assert not (tmp_path / "out" / "places.geojson").exists()
    wrong = CliRunner().invoke(app, [*command, "--stride", "5"])
    assert (wrong.exit_code, "stride must divide" in wrong.stderr) == (2, True)


def test_memory_for_less_than_a_tile(coffee_tiff: Path, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match=r"memory: 1e-06 GB hold a tile of \d+ pixels .* depend on \d+; give at"):
        score_huge(scorer_of("padded", patch_sizes=(32,)), coffee_tiff, tmp_path / "out", memory=1e-6)
