"""One scorer per process and choice of options, and `classify`, which asks for it."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from densescore.io.images import ImageLike
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer


def classify(image: ImageLike, model: str | os.PathLike[str] = "lite0", **options: Any) -> DenseScores:
    """Score every patch of an image with a named model; the model is loaded once per process and choice of options.

    Args:
        image: a path, encoded bytes, a file object, a PIL image, an array or a tensor.
        model: a name, or the file of a trained adaptation head.
        **options: those of `DenseScorer`.

    Returns:
        The scores; ``.top(5)`` ranks the classes.

    Raises:
        DensescoreError: see `DenseScorer` and `DenseScorer.score`.

    Example:
        >>> import skimage
        >>> classify(skimage.data.chelsea(), scales=(1, 1.3)).top(1)[0].label
        'Egyptian cat'
    """
    return shared_scorer(model, options).score(image)


def shared_scorer(model: str | os.PathLike[str], options: Mapping[str, Any]) -> DenseScorer:
    """The scorer of a named model, or of a head's file: one per process and choice of options.

    A file that was written anew, as by another training, is read anew.
    """
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    model = os.fspath(model)
    return _shared_scorer(model, _version(model), **frozen)


@lru_cache(maxsize=4)
def _shared_scorer(model: str, _version: tuple[int, int] | None, **options: Any) -> DenseScorer:
    return DenseScorer(model, **options)


def _version(model: str) -> tuple[int, int] | None:
    """What changes when a file is written anew; None for a name."""
    file = Path(model)
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
