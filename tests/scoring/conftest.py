"""A small named model, and the small pictures of the tests of many images."""

from collections.abc import Iterator

import pytest

from densescore.models import MODELS, ModelEntry
from densescore.scoring import classify
from tests.conftest import Toy
from tests.jobs.many.conftest import pictures, scorer

__all__ = ["pictures", "scorer"]


@pytest.fixture
def toy() -> Iterator[None]:
    MODELS["toy"] = ModelEntry(
        "a toy", lambda weights: Toy(), lambda: dict(Toy().state_dict()), "none", "tests", patch_size=20
    )
    classify._scorers.clear()
    yield
    classify._scorers.clear()
    del MODELS["toy"]
