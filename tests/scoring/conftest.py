"""A small named model, and the small pictures of the tests of many images."""

from collections.abc import Iterator

import pytest

from densescore.scoring import classify
from tests.jobs.many.conftest import pictures, scorer

__all__ = ["pictures", "scorer"]


@pytest.fixture
def toy(toy: str) -> Iterator[None]:
    """The model, forgotten by `densescore.classify` before and after."""
    classify._scorers.clear()
    yield
    classify._scorers.clear()
