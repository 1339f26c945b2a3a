"""A small set of boxed pictures, and a small network with a name."""

from pathlib import Path

import pytest

from densescore import DenseScorer
from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledImage
from densescore.transfer.recipe import Recipe
from tests.data.voc_set import write_voc

SCALES = (1.0, 1.5, 2.3)
QUICK = Recipe(scales=SCALES, width=32, round=512, batch=64, max_rounds=6, tolerance=0.02)


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), {"train": 18, "val": 12})


@pytest.fixture
def toy(toy: str) -> DenseScorer:
    return DenseScorer(toy, scales=SCALES)


def without_boxes(boxed: BoxedSet) -> list[LabeledImage]:
    """The images of a set, with labels alone."""
    return [LabeledImage(name=i.name, path=i.path, height=i.height, width=i.width, truth=i.truth) for i in boxed.images]
