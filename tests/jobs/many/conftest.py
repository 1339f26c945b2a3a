"""Small pictures on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densescore import DenseScorer
from tests.conftest import Toy


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
