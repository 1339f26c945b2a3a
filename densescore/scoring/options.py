"""Options of `DenseScorer` that functions pass on: spelled out, so that editors complete and check them."""

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

import torch

from densescore.errors import DensescoreError
from densescore.models.registry import Weights
from densescore.network.cpu.accelerate import Runtime
from densescore.scoring.checks import Numbers


class NetworkOptions(TypedDict, total=False):
    """Arguments of `DenseScorer` besides the model and the context; see there."""

    weights: Weights
    labels: Sequence[str] | str | os.PathLike[str] | None
    mean: Numbers | None
    std: Numbers | None
    patch_size: int | None
    scales: Numbers | None
    patch_sizes: Numbers | None
    stride: int | None
    k: float | None
    device: str | torch.device
    dtype: str | torch.dtype
    runtime: Runtime
    max_cells: int
    threshold: float | None


class ScorerOptions(NetworkOptions, total=False):
    """Arguments of `DenseScorer` besides the model; see there."""

    context: Literal["image", "patch"] | None


class StreamOptions(ScorerOptions, total=False):
    """Arguments of `score_many` besides the images and the model; see there."""

    decoders: int | None
    ahead: int
    batch: int | None


def check_options(names: Iterable[str]) -> None:
    """Raise an error for the first name that is no option."""
    known = list(ScorerOptions.__annotations__)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or [", ".join(known)]
            raise DensescoreError(f"{name}: no such option of a scorer; did you mean {near[0]}?")
