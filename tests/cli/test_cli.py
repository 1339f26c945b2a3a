"""The commands as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from densescore.cli.main import app

FAST = ["--scales", "1,1.6"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path: Path, cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(cat).save(folder / "cat.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    Image.fromarray(coffee).save(folder / "coffee.png")
    return folder


def test_classify_prints_a_ranked_table(photos: Path) -> None:
    result = run("classify", photos / "cat.png", "--top", "3", *FAST)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "│" in line]
    assert len(lines) == 3
    assert "Egyptian cat" in lines[0]


def test_a_broken_image_is_reported_and_skipped(photos: Path) -> None:
    result = run("classify", photos, "--json", *FAST)
    assert result.exit_code == 1
    broken, cat, coffee = [json.loads(line) for line in result.stdout.splitlines()]
    assert "broken.jpg: not an image" in broken["error"]
    assert cat["top"][0]["label"] == "Egyptian cat"
    assert coffee["top"][0]["label"] == "espresso"
    assert coffee["geometry"]["patches"] == sum(
        rows * cols for rows, cols in (level["grid"] for level in coffee["geometry"]["levels"])
    )
    assert "1 of 3 images failed" in result.stderr


def test_heatmap_writes_a_folder_per_image_and_never_over_another(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    arguments: list[str | Path] = ["heatmap", photos / "cat.png", "--out", out, *FAST]
    first = run(*arguments, "--classes", "tabby, Egyptian cat")
    assert first.exit_code == 0, first.output
    assert {file.name for file in (out / "cat").iterdir()} == {
        ".densescore", "tabby.png", "tabby.npz", "Egyptian_cat.png", "Egyptian_cat.npz", "manifest.json",
    }  # fmt: skip
    before = {file: file.stat().st_mtime_ns for file in (out / "cat").iterdir()}
    again = run(*arguments, "--top", "1")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in (out / "cat").iterdir()} == before
    replaced = run(*arguments, "--top", "1", "--sheet", "--overwrite", "--json")
    assert replaced.exit_code == 0
    manifest = json.loads(replaced.stdout)
    assert [entry["label"] for entry in manifest["classes"]] == ["Egyptian cat"]
    assert {file.name for file in (out / "cat").iterdir()} == {
        ".densescore", "Egyptian_cat.png", "Egyptian_cat.npz", manifest["sheet"], "manifest.json",
    }  # fmt: skip
    width, height = Image.open(out / "cat" / manifest["sheet"]).size
    assert width > 2 * height  # the photograph and a map, side by side


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--colors", "loud"], "--colors: expected relative or absolute or rescaled, got 'loud'"),
        (["--colormap", "torbo"], "colormap: matplotlib has none named 'torbo'"),
        (["--sheet", "--colors", "rescaled"], "a sheet has one scale"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_before_any_work(
    photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run("heatmap", photos / "cat.png", "--out", tmp_path / "maps", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "maps").exists()


def test_pictures_of_one_stem_get_a_folder_each(photos: Path, tmp_path: Path) -> None:
    twin = tmp_path / "cat.png"
    twin.write_bytes((photos / "coffee.png").read_bytes())
    result = run("heatmap", photos / "cat.png", twin, "--out", tmp_path / "maps", *FAST)
    assert result.exit_code == 0, result.output
    for name, source in (("cat", photos / "cat.png"), ("cat-2", twin)):
        manifest = json.loads((tmp_path / "maps" / name / "manifest.json").read_text())
        assert manifest["image"]["source"] == str(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet"], "unknown model 'lenet'"),
        (["--model", "krizhevsky"], "no published weights"),
        (["--scales", "1,x"], "--scales: expected numbers with commas between, got '1,x'"),
        (["--patch-sizes", "-3"], "patch_sizes must be one or more positive"),
        (["--k", "0"], "k: got 0.0, expected a number from 1"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_usage_errors_exit_with_2_and_no_traceback(photos: Path, arguments: list[str], message: str) -> None:
    result = run("classify", photos / "cat.png", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_class_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    result = run("heatmap", photos, "--classes", "tabbi", "--out", tmp_path / "maps")
    assert result.exit_code == 2
    assert "did you mean tabby" in result.stderr
    assert not (tmp_path / "maps").exists()


def test_models_lists_licenses() -> None:
    names = [json.loads(line)["name"] for line in run("models", "--json").stdout.splitlines()]
    assert names[0] == "lite0"
    assert "krizhevsky" in names
    assert "Apache-2.0" in run("models").stdout


def test_the_version_is_the_packages() -> None:
    import densescore

    assert run("--version").stdout.strip() == f"densescore {densescore.__version__}"
