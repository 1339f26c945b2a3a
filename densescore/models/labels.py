"""The classes of a model, known before its network is built and without loading torch."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from safetensors import safe_open

from densescore.errors import DensescoreError, reason_of

IMAGENET_MODELS = frozenset(
    (
        "lite0",
        "lite1",
        "lite2",
        "krizhevsky",
        "krizhevsky-6144",
        "krizhevsky-caffe",
        "krizhevsky-caffenet",
        "alexnet",
        "vgg16",
    )
)
"""The named models whose own labels are ImageNet's 1,000."""


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 names of ILSVRC's classes, in the order of their sorted WordNet ids (torchvision's spelling)."""
    return tuple(Path(__file__).with_name("imagenet_labels.txt").read_text("utf-8").splitlines())


def known_labels(model: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """The labels that `DenseScorer` will give this model, where they are known without reading its weights.

    Args:
        model: a name, or the file of an adaptation head.
        weights: ``"default"``, a file, or None for random ones.

    Returns:
        C class names; None where only the network can tell: another model, weights without labels.

    Raises:
        DensescoreError: a head's file cannot be read.

    Example:
        >>> known_labels("lite0", "default")[:2]
        ('tench', 'goldfish')
    """
    model = os.fspath(model)
    if model.endswith(".safetensors"):
        return _labels_in(model, "densescore")
    if weights is None or weights == "default":
        return imagenet_labels() if model in IMAGENET_MODELS else None
    return _labels_in(weights, "labels") if os.fspath(weights).endswith(".safetensors") else None


def _labels_in(path: str | os.PathLike[str], key: str) -> tuple[str, ...] | None:
    """The labels in the metadata of a safetensors file; None if it has none."""
    try:
        with safe_open(path, framework="np") as file:
            found = json.loads((file.metadata() or {}).get(key, "null"))
    except Exception as error:  # safetensors raises its own, and the system's
        raise DensescoreError(f"{os.fspath(path)}: cannot be read as safetensors: {reason_of(error)}") from error
    labels = found.get("labels") if isinstance(found, dict) else found
    return tuple(map(str, labels)) if isinstance(labels, list) else None


def find_label(label: str, labels: Sequence[str]) -> int:
    """Index of a class among `labels`.

    Raises:
        DensescoreError: no such class; the message lists the nearest names. Or several classes have this name in the
            model, ``crane``, and were given their index, ``crane (134)``, by `unique_labels`.
    """
    if label not in labels:
        twins = [name for name in labels if re.fullmatch(rf"{re.escape(label)} \(\d+\)", name)]
        if len(twins) > 1:
            raise DensescoreError(f"class {label!r}: several have this name; choose one of {', '.join(twins)}")
        near = [name for name in labels if label.lower() in name.lower()]
        near += difflib.get_close_matches(label, labels, n=3, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(dict.fromkeys(near[:5]))}?" if near else f"the network has {len(labels)} others"
        )
        raise DensescoreError(f"no class {label!r}: {hint}")
    return labels.index(label)
