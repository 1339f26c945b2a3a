"""The examples of docs/*.md run as they stand."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from densescore.cli import app

DOCS = Path(__file__).parents[1] / "docs"


def examples(page: str, kind: str) -> list[str]:
    """Blocks of a page between ```kind and ```."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for found, text in blocks if found == kind]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cat: NDArray[np.uint8]) -> Path:
    """A folder with photo.jpg in it, in which the examples run."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(cat).save("photo.jpg")
    return tmp_path


def test_denser(photo: Path) -> None:
    names: dict[str, Any] = {}
    for block in examples("denser.md", "python"):
        exec(block, names)
    assert names["scores"].pyramid.stride == 16
    (line,) = examples("denser.md", "")
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, result.output
    assert list((photo / "heatmaps" / "photo").glob("*.png"))


def test_export(photo: Path) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    (line,) = examples("export.md", "")
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, result.output
    names: dict[str, Any] = {}
    for block in examples("export.md", "python"):
        exec(block, names)
    assert names["model"]["labels"][names["best"]] == "Egyptian cat"
    np.testing.assert_allclose(names["again"], names["probabilities"], rtol=1e-2, atol=1e-4)
    assert (photo / "lite0.pt2").exists()


def test_huge_images(photo: Path, coffee: NDArray[np.uint8]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    tifffile.imwrite("slide.tif", coffee, tile=(128, 128), photometric="rgb")
    _, line = examples("huge-images.md", "")[0].splitlines()
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, result.output
    (block,) = examples("huge-images.md", "python")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["result"]["tiles_scored_now"] == 0  # the command's tiles were there
    assert names["result"]["top"][0]["label"] in {"espresso", "cup"}
    assert tifffile.imread("slide-scores/maps/espresso.tif").shape == (100, 150)
