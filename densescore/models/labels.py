"""The classes of a model, known before its network is built and without loading torch."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from densescore.errors import DensescoreError, reason_of
from densescore.models.groups import Meaning, group_names, main_meaning, meanings_of, spelling

IMAGENET_MODELS = frozenset(
    (
        "lite0",
        "lite1",
        "lite2",
        "lite0-stages",
        "lite1-stages",
        "lite2-stages",
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


class Classes(NamedTuple):
    """One class, or several that a group's name stands for.

    Attributes:
        label: as results name it: the class's label, or the group's name.
        columns: of the classes in a network's output.
        is_group: it is the name of a group, be it of a single class.
    """

    label: str
    columns: tuple[int, ...]
    is_group: bool = False


def find_classes(name: str, labels: Sequence[str]) -> Classes:
    """The class of a name, or the classes of a group's name.

    A label is the class itself, also in another case where only one label is like it. Where the labels are ImageNet's
    1,000, every noun of WordNet above some of them stands for all of these: ``dog`` for all breeds. So do its synonyms
    and its wnid, ``n02084071``.

    Args:
        name: of a class or a group.
        labels: C class names.

    Raises:
        DensescoreError: there is neither; the message lists the nearest names. Or the name is ambiguous; the message
            lists the choices.

    Example:
        >>> labels = imagenet_labels()
        >>> len(find_classes("dog", labels).columns), find_classes("Tabby cat", labels).label
        (118, 'tabby')
    """
    if name in labels:
        return Classes(name, (labels.index(name),))
    twins = [label for label in labels if re.fullmatch(rf"{re.escape(name)} \(\d+\)", label)]
    if len(twins) > 1:
        raise DensescoreError(f"class {name!r}: several have this name; choose one of {', '.join(twins)}")
    alike = [column for column, label in enumerate(labels) if label.casefold() == name.casefold()]
    if len(alike) == 1:
        return Classes(labels[alike[0]], (alike[0],))
    meanings = meanings_of(name) if tuple(labels) == imagenet_labels() else []
    if not meanings:
        raise DensescoreError(f"no class {name!r}: {_hint(name, labels)}")
    meaning = main_meaning(meanings)
    if meaning is None:
        choices = "; ".join(f"{each.wnid} ({_describe(each, labels)})" for each in meanings)
        raise DensescoreError(f"class {name!r} has {len(meanings)} meanings; choose one by its number: {choices}")
    if meaning.is_class:
        return Classes(labels[meaning.columns[0]], meaning.columns)
    return Classes(spelling(name), meaning.columns, is_group=True)


def find_label(label: str, labels: Sequence[str]) -> int:
    """Index of a class among `labels`.

    Raises:
        DensescoreError: as for `find_classes`; or the name is a group's.
    """
    found = find_classes(label, labels)
    if found.is_group:
        raise DensescoreError(f"{label!r} is a group of {len(found.columns)} classes; expected a class")
    return found.columns[0]


def _describe(meaning: Meaning, labels: Sequence[str]) -> str:
    """``car, auto, …: ambulance and 9 more``."""
    more = f" and {len(meaning.columns) - 1} more" if len(meaning.columns) > 1 else ""
    return f"{', '.join(meaning.words[:2])}: {labels[meaning.columns[0]]}{more}"


def _hint(name: str, labels: Sequence[str]) -> str:
    """The names that are most like one that is not known."""
    known = [*labels, *group_names()] if tuple(labels) == imagenet_labels() else [*labels]
    near = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.6)
    near += [label for label in labels if name and name.casefold() in label.casefold()]
    return f"did you mean {', '.join(dict.fromkeys(near[:5]))}?" if near else f"the network has {len(labels)} others"
