"""A scorer's arguments as they come."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError

Numbers = Sequence[float] | NDArray[Any] | Tensor


@overload
def as_tuple(name: str, values: None) -> None: ...


@overload
def as_tuple(name: str, values: Iterable[Any]) -> tuple[Any, ...]: ...


def as_tuple(name: str, values: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """A tuple of Python's own numbers or strings, whatever sequence is given; None stays None.

    Args:
        name: of the argument.
        values: a list, a tuple, an array, a tensor, …

    Raises:
        DensescoreError: it is not a sequence.
    """
    if values is None:
        return None
    try:
        listed = values.tolist() if hasattr(values, "tolist") else values
        return tuple(value.item() if isinstance(value, np.generic) else value for value in listed)
    except TypeError as error:
        raise DensescoreError(f"{name} must be a sequence, got {values!r}") from error


def fit_labels(labels: tuple[str, ...], classes: int, given: bool) -> tuple[str, ...]:
    """The names of a network's classes; ``class 0``, … where there are no names for so many.

    Args:
        labels: C names, or those of another network.
        classes: C.
        given: by the user, so that they must fit.

    Raises:
        DensescoreError: the user's labels do not fit.
    """
    if len(labels) == classes:
        return labels
    if given:
        raise DensescoreError(f"labels: got {len(labels)} names for a network of {classes} classes")
    return tuple(f"class {index}" for index in range(classes))


def check_context(context: str | None, known: tuple[str | None, ...]) -> None:
    """Refuse a context that a network has not.

    Raises:
        DensescoreError: `context` is not one of `known`.
    """
    if context in known:
        return
    if context == "image":
        raise DensescoreError(
            "context 'image' needs a convolutional network; this one is scored by crops: use context='patch'"
        )
    raise DensescoreError(f"context must be 'image' or 'patch', got {context!r}")
