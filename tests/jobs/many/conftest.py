"""Small pictures on disk, a small network to score them, and the command that does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densescore import DenseScorer
from densescore.cli.main import app
from tests.cli.runner import CliRunner, Result
from tests.conftest import Toy


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a table."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


@pytest.fixture(scope="session")
def scorer() -> DenseScorer:
    """A small network, made once for all tests here."""
    return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5), runtime="torch")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Eleven pictures of several sizes, the fourth broken and the eighth missing."""
    draw = np.random.default_rng(0)
    paths = []
    for index in range(11):
        path = tmp_path / "pictures" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        size = (24 + 3 * (index % 4), 30 + 5 * (index % 3), 3)
        if index == 3:
            path.write_bytes(b"not a picture")
        elif index != 7:
            Image.fromarray(draw.integers(0, 256, size, np.uint8)).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def command(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs ``densescore score`` in the folder of `pictures`, with the small network instead of a named one."""
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **_: scorer)
    monkeypatch.setattr("densescore.cli.options.known_labels", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["score", *map(str, words)])
