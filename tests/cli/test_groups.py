"""``--classes dog``: groups of classes on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from densescore import DenseScorer
from densescore.cli.main import app

FAST = ["--scales", "1,1.6"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photo(tmp_path: Path, cat: NDArray[np.uint8]) -> Path:
    Image.fromarray(cat).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_classify_ranks_the_chosen_alone_and_says_what_a_group_is(photo: Path) -> None:
    result = run("classify", photo, "--classes", "Dog,cat,Tabby,cat", "--json", *FAST)
    assert result.exit_code == 0, result.output
    expected = DenseScorer("lite0", scales=(1, 1.6)).score(photo).select(["dog", "cat", "tabby"]).top()
    found = json.loads(result.stdout)["top"]
    assert [entry["label"] for entry in found] == ["cat", "tabby", "dog"]
    for entry, best in zip(found, expected, strict=True):
        assert entry["confidence"] == pytest.approx(best.confidence, rel=1e-4)
    assert found[0]["confidence"] > 0.5
    seven = run("classify", photo, "--classes", "dog,cat,tabby,car,bird,fish,boat", "--json", "--quiet", *FAST)
    assert len(json.loads(seven.stdout)["top"]) == 7  # more than --top
    assert "cat: 7 classes: tabby, tiger cat, Persian cat, …" in result.stderr
    assert "dog: 118 classes: " in result.stderr


def test_heatmap_of_a_group(photo: Path, tmp_path: Path) -> None:
    result = run("heatmap", photo, "--classes", "CAT", "--out", tmp_path / "maps", *FAST)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "maps" / "photo" / "cat.png").is_file()
    manifest = json.loads((tmp_path / "maps" / "photo" / "manifest.json").read_text())
    assert manifest["classes"][0]["map_maximum"] > 0.5  # all cats' probabilities together
    assert manifest["top"][0]["label"] == "Egyptian cat"


@pytest.mark.parametrize("command", ["classify", "heatmap", "score", "huge"])
@pytest.mark.parametrize(
    ("classes", "message"),
    [("dogs", "no class 'dogs': did you mean dog,"), ("dog,toy", "class 'toy' has 2 meanings; choose one")],
)
def test_unknown_and_ambiguous_names_are_refused_before_any_work(command: str, classes: str, message: str) -> None:
    arguments = ["--out", "out.parquet"] if command in ("score", "huge") else []
    result = run(command, "no such photo.jpg", "--classes", classes, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
