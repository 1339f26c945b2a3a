"""Labels of a model, and the classes of a name among them; without loading torch."""

import difflib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from densescore.errors import DensescoreError, reason_of
from densescore.io.names import folded

_MAX_BYTES = 16 * 2**20  # of a file of labels

IMAGENET_MODELS = frozenset(
    {"lite0", "lite1", "lite2", "lite0-stages", "lite1-stages", "lite2-stages", "krizhevsky", "krizhevsky-6144",
     "krizhevsky-caffe", "krizhevsky-caffenet", "alexnet", "vgg16"}
)  # fmt: skip
"""The named models whose own labels are ImageNet's 1,000."""


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 names of ILSVRC's classes, in the order of their sorted WordNet ids (torchvision's spelling)."""
    return tuple(Path(__file__).with_name("imagenet_labels.txt").read_text("utf-8").splitlines())


def known_labels(model: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """Labels that `DenseScorer` gives a name or a head's file, or None if only the network can tell."""
    model = os.fspath(model)
    if model.endswith(".safetensors"):
        return _labels_in(model, "densescore")
    if weights is None or weights == "default":
        return imagenet_labels() if model in IMAGENET_MODELS else None
    return _labels_in(weights, "labels") if os.fspath(weights).endswith(".safetensors") else None


def _labels_in(path: str | os.PathLike[str], key: str) -> tuple[str, ...] | None:
    """Labels in the metadata of a safetensors file, or None."""
    try:
        with safe_open(path, framework="np") as file:
            value = json.loads((file.metadata() or {}).get(key, "null"))
    except Exception as error:  # safetensors raises its own, and the system's
        raise DensescoreError(f"{os.fspath(path)}: cannot be read as safetensors: {reason_of(error)}") from error
    labels = value.get("labels") if isinstance(value, dict) else value
    return tuple(map(str, labels)) if isinstance(labels, list) else None


def read_label_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one a line, in the order of the network's outputs.

    Blanks around a name and empty lines at the end are dropped; other empty lines and repeated names are errors.
    """
    path = Path(path)
    if not path.is_file():
        raise DensescoreError(f"{path}: no such file of labels; expected a text file with one class name a line")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DensescoreError(f"{path}: too large for a file of labels ({path.stat().st_size:,} bytes)")
        lines = path.read_text("utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DensescoreError(f"{path}: cannot be read as UTF-8 text: {reason_of(error)}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        label = line.strip()
        if not label:
            raise DensescoreError(f"{path}: line {number} is empty; expected one class name a line")
        if label in seen:
            raise DensescoreError(f"{path}: line {number} repeats the label {label!r} of line {seen[label]}")
        seen[label] = number
    return tuple(seen)


class Meaning(NamedTuple):
    """A synset of WordNet that is one of the 1,000 classes, or a hypernym of some of them."""

    wnid: str  # number in WordNet 3.0, such as n02084071
    words: tuple[str, ...]  # nouns
    columns: tuple[int, ...]  # classes, as columns of a network's output
    is_class: bool  # the synset is itself a class


class _Sense(NamedTuple):
    word: str
    number: int  # 1: the word's most frequent sense, or its only one here
    meaning: Meaning


def meanings_of(name: str) -> list[Meaning]:
    """Meanings of a noun, in any case, or of a wnid; the most frequent sense first."""
    return [sense.meaning for sense in _senses().get(name.casefold(), [])]


def spelling(name: str) -> str:
    """A noun in WordNet's own case: ``welsh Corgi`` → ``Welsh corgi``."""
    return _senses()[name.casefold()][0].word


def main_meaning(meanings: list[Meaning]) -> Meaning | None:
    """Default sense of a noun: the most frequent one, if it also has the most classes; None if ambiguous.

    Cat is the true cat, not the big cat. Plant is ambiguous: most often a factory, while more classes are flowers.
    """
    first, *others = meanings
    clear = all(len(first.columns) > len(other.columns) for other in others)
    return first if clear else None


@cache
def group_names() -> tuple[str, ...]:
    """All nouns that `meanings_of` knows."""
    return tuple(senses[0].word for senses in _senses().values() if senses[0].word != senses[0].meaning.wnid)


@cache
def _senses() -> dict[str, list[_Sense]]:
    """Noun or wnid, casefolded → its senses, the most frequent first."""
    senses_of = defaultdict(list)
    for line in Path(__file__).with_name("imagenet_groups.txt").read_text("utf-8").splitlines():
        wnid, columns, words = line.split("\t")
        numbered = [word.partition("=") for word in words.split(", ")]
        is_class = columns.startswith("class ")
        members = tuple(_columns(columns.removeprefix("class ")))
        meaning = Meaning(wnid, tuple(word for word, _, _ in numbered), members, is_class)
        for word, _, number in [*numbered, (wnid, "", "")]:
            senses_of[word.casefold()].append(_Sense(word, int(number or 1), meaning))
    return {word: sorted(senses, key=lambda sense: sense.number) for word, senses in senses_of.items()}


def _columns(text: str) -> list[int]:
    """``"1-3 7"`` → 1, 2, 3, 7."""
    runs = [run.split("-") for run in text.split()]
    return [column for run in runs for column in range(int(run[0]), int(run[-1]) + 1)]


class Classes(NamedTuple):
    """A class, or a group of classes under one name."""

    label: str  # the class's label, or the group's name
    columns: tuple[int, ...]  # of a network's output
    is_group: bool = False  # also of a group of one class


def as_names(labels: str | Iterable[str]) -> list[str]:
    """One name, or several, as a list; `find_classes` refuses what is no name."""
    return [labels] if isinstance(labels, str) or not isinstance(labels, Iterable) else list(labels)


def find_classes(name: str, labels: Sequence[str]) -> Classes:
    """The class of a label, in any case if that is unique; or, among ImageNet's 1,000 labels, the classes of a group.

    Groups are WordNet's nouns, by word or wnid. Errors list the nearest names, or the choices of an ambiguous one.
    """
    if not isinstance(name, str):
        raise DensescoreError(f"a class is a name, such as {labels[0]!r}, got {name!r}")
    if name in labels:
        return Classes(name, (labels.index(name),))
    twins = [label for label in labels if re.fullmatch(rf"{re.escape(name)} \(\d+\)", label)]
    if len(twins) > 1:
        raise DensescoreError(f"class {name!r}: several have this name; choose one of {', '.join(twins)}")
    alike = [column for column, label in enumerate(labels) if folded(label) == folded(name)]
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
    """Index of a class among `labels`; a group's name is an error."""
    classes = find_classes(label, labels)
    if classes.is_group:
        raise DensescoreError(f"{label!r} is a group of {len(classes.columns)} classes; expected a class")
    return classes.columns[0]


def _describe(meaning: Meaning, labels: Sequence[str]) -> str:
    """``car, auto, …: ambulance and 9 more``."""
    more = f" and {len(meaning.columns) - 1} more" if len(meaning.columns) > 1 else ""
    return f"{', '.join(meaning.words[:2])}: {labels[meaning.columns[0]]}{more}"


def _hint(name: str, labels: Sequence[str]) -> str:
    """Suggestion for an unknown name."""
    known = [*labels, *group_names()] if tuple(labels) == imagenet_labels() else [*labels]
    near = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.6)
    near += [label for label in labels if name and name.casefold() in label.casefold()]
    return f"did you mean {', '.join(dict.fromkeys(near[:5]))}?" if near else f"the network has {len(labels)} others"
