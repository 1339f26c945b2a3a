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
