"""A small set of boxed pictures, and a small network with a name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from densescore import DenseScorer
from densescore.models import MODELS, ModelEntry
from densescore.transfer.recipe import Recipe
from tests.conftest import Toy
from tests.data.voc_set import write_voc

SCALES = (1.0, 1.5, 2.3)
QUICK = Recipe(width=32, round=512, batch=64, max_rounds=6, tolerance=0.02)


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), {"train": 18, "val": 12})


@pytest.fixture
def toy() -> Iterator[DenseScorer]:
    entry = ModelEntry("a toy", lambda weights: Toy(), lambda: {}, "none", "tests", patch_size=20)
    MODELS["toy"] = entry
    yield DenseScorer("toy", scales=SCALES)
    del MODELS["toy"]
