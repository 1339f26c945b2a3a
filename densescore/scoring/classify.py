"""`classify`, and its cache of scorers: one per process and choice of options."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from densescore.io.images import ImageLike
from densescore.results.scores import DenseScores
from densescore.scoring.checks import check_process
from densescore.scoring.options import ScorerOptions, check_options
from densescore.scoring.scorer import DenseScorer

MAX_SCORERS = 4
"""Scorers in the cache; past that, the least recently used one is dropped."""


def classify(
    image: ImageLike,
    model: str | os.PathLike[str] = "lite0",
    *,
    classes: str | Sequence[str] | None = None,
    **options: Unpack[ScorerOptions],
) -> DenseScores:
    """Score every patch of an image with a named model, which is loaded once per process and choice of options.

    Safe to call from any number of threads; calls that arrive while the model is loaded wait for it.

    Args:
        image: a path, encoded bytes, a file object, a PIL image, an array or a tensor.
        model: a name, or the file of a trained adaptation head.
        classes: rank and keep only these classes or groups, such as ``["dog", "cat"]``; see `DenseScores.select`.
        **options: options of `DenseScorer`.

    Returns:
        The scores; ``.top(5)`` ranks the classes.

    Raises:
        DensescoreError: see `DenseScorer` and `DenseScorer.score`.

    Example:
        >>> import skimage
        >>> classify(skimage.data.chelsea(), scales=(1, 1.3)).top(1)[0].label
        'Egyptian cat'
    """
    scores = shared_scorer(model, options).score(image)
    return scores if classes is None else scores.select(classes)


_log = logging.getLogger("densescore")
_lock = threading.Lock()
_scorers: OrderedDict[Hashable, Future[DenseScorer]] = OrderedDict()


def shared_scorer(model: str | os.PathLike[str], options: Mapping[str, Any]) -> DenseScorer:
    """The cached scorer of a named model or a head's file; a file that has been written again is read again."""
    check_process()
    check_options(options)
    # Look up, or reserve a place
    key = (os.fspath(model), _version(model), _as_key(options))
    with _lock:
        is_new = key not in _scorers
        future = _scorers.setdefault(key, Future())
        _scorers.move_to_end(key)
        if len(_scorers) > MAX_SCORERS:
            _scorers.popitem(last=False)
    # Make it; other threads that want the same scorer wait
    if is_new:
        try:
            scorer = DenseScorer(os.fspath(model), **options)
            _log.info("loaded %s", scorer.describe())
            future.set_result(scorer)
        except BaseException as error:
            with _lock:  # the next call tries again
                if _scorers.get(key) is future:
                    del _scorers[key]
            future.set_exception(error)
    return future.result()


def _version(model: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Time and size of a file, which change when it is written again; None for a name."""
    file = Path(model)
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None


def _as_key(value: Any) -> Hashable:
    """A key that is equal for equal options, whether they are lists, tuples, arrays or tensors."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(name), _as_key(item)) for name, item in value.items()))
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(_as_key, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if isinstance(value, Hashable) else repr(value)
