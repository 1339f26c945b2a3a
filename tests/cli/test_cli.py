"""Commands as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from densescore import DensescoreError, DenseScorer
from tests.cli.runner import refuse, run, succeed

FAST = ["--scales", "1,1.6"]


@pytest.fixture
def photos(tmp_path: Path, cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(cat).save(folder / "cat.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    Image.fromarray(coffee).save(folder / "coffee.png")
    return folder


def test_classify_prints_a_ranked_table(photos: Path) -> None:
    result = succeed("classify", photos / "cat.png", "--top", "3", *FAST)
    lines = [line for line in result.output.splitlines() if "│" in line]
    assert len(lines) == 3
    assert "Egyptian cat" in lines[0]


def test_broken_image_is_reported_and_skipped(photos: Path) -> None:
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


def test_heatmap_folder_is_replaced_only_with_overwrite(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    arguments: list[str | Path] = ["heatmap", photos / "cat.png", "--out", out, *FAST]
    succeed(*arguments, "--classes", "tabby, Egyptian cat")
    assert {file.name for file in (out / "cat").iterdir()} == {
        ".densescore", "tabby.png", "tabby.npz", "Egyptian_cat.png", "Egyptian_cat.npz", "manifest.json",
    }  # fmt: skip
    before = {file: file.stat().st_mtime_ns for file in (out / "cat").iterdir()}
    again = succeed(*arguments, "--classes", "tabby,Egyptian cat")  # finished before
    assert "cat: finished before, and skipped; --overwrite draws it again" in again.stderr.replace("\n", "")
    for words in (["--top", "1"], ["--classes", "tabby,tiger cat"], ["--classes", "tabby,Egyptian cat", "--k", "2"]):
        other = run(*arguments, *words)
        assert other.exit_code == 1
        assert "exists already; choose another name, or --overwrite" in other.stderr
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
        (["--colors", "loud"], 'Invalid value "loud" for --colors'),
        (["--colormap", "torbo"], "colormap: matplotlib has none named 'torbo'"),
        (["--sheet", "--shared-scale", "--colors", "rescaled"], "its own scale"),
    ],
)
def test_wrong_drawing_options_are_refused_before_any_work(
    photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    refuse("heatmap", photos / "cat.png", "--out", tmp_path / "maps", *arguments, message=message)
    assert not (tmp_path / "maps").exists()


def test_images_of_one_stem_get_a_folder_each(photos: Path, tmp_path: Path) -> None:
    twin = tmp_path / "cat.png"
    twin.write_bytes((photos / "coffee.png").read_bytes())
    succeed("heatmap", photos / "cat.png", twin, "--out", tmp_path / "maps", *FAST)
    for name, source in (("cat", photos / "cat.png"), ("cat-2", twin)):
        manifest = json.loads((tmp_path / "maps" / name / "manifest.json").read_text())
        assert manifest["image"]["source"] == str(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet"], "unknown model 'lenet'"),
        (["--model", "krizhevsky"], "no published weights"),
        (["--patch-sizes", "-3"], "patch_sizes must be one or more positive"),
        (["--k", "0"], "k: got 0.0, expected a number from 1"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_usage_errors(photos: Path, arguments: list[str], message: str) -> None:
    refuse("classify", photos / "cat.png", *arguments, message=message)


def test_classify_ranks_only_the_requested_classes_and_explains_groups(photos: Path) -> None:
    result = succeed("classify", photos / "cat.png", "--classes", "Dog,cat,Tabby,cat", "--json", *FAST)
    expected = DenseScorer("lite0", scales=(1, 1.6)).score(photos / "cat.png").select(["dog", "cat", "tabby"]).top()
    ranking = json.loads(result.stdout)["top"]
    assert [entry["label"] for entry in ranking] == ["cat", "tabby", "dog"]
    for entry, best in zip(ranking, expected, strict=True):
        assert entry["confidence"] == pytest.approx(best.confidence, rel=1e-4)
    assert ranking[0]["confidence"] > 0.5
    seven = run(
        "classify", photos / "cat.png", "--classes", "dog,cat,tabby,car,bird,fish,boat", "--json", "--quiet", *FAST
    )
    assert len(json.loads(seven.stdout)["top"]) == 7  # more than --top
    assert "cat: 7 classes: tabby, tiger cat, Persian cat, …" in result.stderr
    assert "dog: 118 classes: " in result.stderr


def test_heatmap_of_a_group(photos: Path, tmp_path: Path) -> None:
    succeed("heatmap", photos / "cat.png", "--classes", "CAT", "--out", tmp_path / "maps", *FAST)
    assert (tmp_path / "maps" / "cat" / "cat.png").is_file()
    manifest = json.loads((tmp_path / "maps" / "cat" / "manifest.json").read_text())
    assert manifest["classes"][0]["location"]["peak"] > 0.4  # all cats' probabilities together
    assert manifest["top"][0]["label"] == "Egyptian cat"


@pytest.mark.parametrize("command", ["classify", "heatmap", "score", "huge"])
@pytest.mark.parametrize(
    ("classes", "message"),
    [("dogs", "no class 'dogs': did you mean dog,"), ("dog,toy", "class 'toy' has 2 meanings; choose one")],
)
def test_unknown_and_ambiguous_classes_are_refused_before_any_work(command: str, classes: str, message: str) -> None:
    arguments = ["--out", "out.parquet"] if command in ("score", "huge") else []
    refuse(command, "no such photo.jpg", "--classes", classes, *arguments, message=message)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "lite0-stages"),
        (["--recipe", "paper"], "lite0"),
        (["--recipe", "paper", "--model", "lite0-stages"], "lite0-stages"),
        (["--model", "lite0"], "lite0"),
    ],
)
def test_default_model_of_each_recipe(
    options: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / label / "0.png")

    def fail(_: Any, scorer: DenseScorer, *rest: Any, **more: Any) -> None:
        raise DensescoreError(f"asked for {scorer.name}.")

    monkeypatch.setattr("densescore.transfer.pipeline.train_model", fail)
    out = tmp_path / "head.safetensors"
    arguments: list[str | Path] = ["--data", tmp_path / "photos", "-o", out, "--cache", tmp_path / "cache", *options]
    refuse("train", *arguments, message=f"asked for {expected}.")


def test_models_list_licenses() -> None:
    names = [json.loads(line)["name"] for line in run("models", "--json").stdout.splitlines()]
    assert names[0] == "lite0"
    assert "krizhevsky" in names
    assert "Apache-2.0" in run("models").stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["models"], ["models", "--json"], ["train", "--help"]])
def test_a_full_disk_below_standard_output_is_an_error(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "densescore", *words], stdout=full, stderr=subprocess.PIPE)
    assert (process.returncode, process.stderr) == (2, b"error: standard output: No space left on device\n")


@pytest.mark.parametrize("length", [245, 252, 300])
@pytest.mark.parametrize(("command", "suffix"), [("score", ".parquet"), ("report", ".html"), ("heatmap", "")])
def test_long_names_are_written_or_refused(
    command: str, suffix: str, length: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("a" * (length - len(suffix)) + suffix)
    words = ["--classes", "tabby"] if command == "heatmap" else []
    result = run(command, photos / "cat.png", *words, "--scales", "1", "--out", out)
    assert result.exception is None
    assert os.path.exists(out) == (result.exit_code == 0)
    assert result.exit_code == 0 or (result.exit_code == 2 and "too long" in result.stderr)
