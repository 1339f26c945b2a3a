"""Which classes of ImageNet a network is pre-trained on: the paper's four choices, or any other.

ImageNet's wnids are offsets of WordNet 3.0's nouns. Only ``data.noun`` is read, in the format of ``man 5 wndb``: nltk's
reader also asks for a file ``lexnames`` that Debian's package lacks, and wn reads another format.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from densescore.errors import DensescoreError

DEFAULT_WORDNET = Path("/usr/share/wordnet")
"""Where Debian's and Ubuntu's package ``wordnet-base`` puts WordNet 3.0."""

PAPER_SUBTREES = {"hoofed mammal": 276, "furniture": 165, "motor vehicle": 48, "public transport": 18, "bicycle": 5}
"""The subtrees that PRE-1512 adds to the 1,000 classes, and their classes: 512 in all (the paper's Section 5.1)."""

PRESETS = {
    "pre-1000c": "ilsvrc",
    "pre-1000r": "random:1000:0",
    "pre-1512": ",".join(["ilsvrc", *(f"subtree:{noun}" for noun in PAPER_SUBTREES)]),
}
"""The paper's choices by name."""

_WNID = re.compile(r"n\d{8}")


@cache
def ilsvrc() -> tuple[str, ...]:
    """The wnids of ILSVRC 2012's 1,000 classes, sorted."""
    return _label_names("imagenet-1k")


@cache
def fall_2011() -> tuple[str, ...]:
    """The wnids of the 21,841 synsets with images in ImageNet's release of fall 2011, sorted."""
    return _label_names("imagenet-22k")


def _label_names(subset: str) -> tuple[str, ...]:
    from timm.data.imagenet_info import ImageNetInfo  # slow to import

    return tuple(sorted(ImageNetInfo(subset).label_names()))


class WordNet:
    """The noun hierarchy of the ``data.noun`` in a folder."""

    def __init__(self, folder: str | os.PathLike[str] = DEFAULT_WORDNET) -> None:
        path = Path(folder) / "data.noun"
        if not path.is_file():
            raise DensescoreError(
                f"{path}: no such file; install the Debian package wordnet-base, or name a folder that holds "
                "data.noun of WordNet 3.0"
            )
        self.folder = Path(folder)
        self._words: dict[str, list[str]] = {}
        self._hyponyms: dict[str, list[str]] = {}
        self._hypernyms: dict[str, list[str]] = {}
        try:
            with path.open(encoding="latin-1") as lines:
                for line in lines:
                    if not line.startswith(" "):  # the license
                        self._add(line.split(" | ")[0].split())
        except (ValueError, IndexError) as error:
            raise DensescoreError(f"{path}: not in the format of WordNet's data files") from error

    def _add(self, fields: list[str]) -> None:
        """Add a line: ``offset lexfile type words (word id)… pointers (symbol offset type source)…``."""
        wnid, words = f"n{fields[0]}", int(fields[3], 16)
        start = 5 + 2 * words
        pointers = [fields[start + 4 * index : start + 4 * index + 4] for index in range(int(fields[start - 1]))]
        self._words[wnid] = [word.replace("_", " ") for word in fields[4 : start - 1 : 2]]
        self._hyponyms[wnid] = [f"n{offset}" for symbol, offset, _, _ in pointers if symbol == "~"]
        self._hypernyms[wnid] = [f"n{offset}" for symbol, offset, _, _ in pointers if symbol == "@"]

    def __contains__(self, wnid: object) -> bool:
        return wnid in self._words

    def name(self, wnid: str) -> str:
        """The words of a synset, with commas between."""
        return ", ".join(self._words[wnid])

    def find(self, noun: str) -> str:
        """The wnid of a noun that has one meaning; a wnid stays."""
        if noun in self:
            return noun
        wnids = [wnid for wnid, words in self._words.items() if noun.replace("_", " ") in words]
        if len(wnids) == 1:
            return wnids[0]
        meanings = "; ".join(f"{wnid} ({self.name(wnid)})" for wnid in wnids)
        raise DensescoreError(
            f"{noun!r} has {len(wnids)} meanings, choose one by its wnid: {meanings}"
            if wnids
            else f"{self.folder}: WordNet has no noun {noun!r}"
        )

    def subtree(self, wnid: str) -> list[str]:
        """The synset and all kinds of it, sorted; classes only, no instances (Secretariat is no kind of horse)."""
        return _reachable(wnid, self._hyponyms)

    def and_above(self, wnid: str) -> list[str]:
        """The synset and all that it is a kind of, sorted."""
        return _reachable(wnid, self._hypernyms)


def _reachable(start: str, links: dict[str, list[str]]) -> list[str]:
    seen: set[str] = set()
    stack = [start]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack += links[current]
    return sorted(seen)


@dataclass(frozen=True)
class SourceClasses:
    """A choice of classes."""

    wnids: tuple[str, ...]  # sorted: the order of the network's outputs
    added: tuple[tuple[str, int], ...]  # (term, number of classes that no earlier term had)


def choose(spec: str, available: Sequence[str], wordnet: Callable[[], WordNet] = WordNet) -> SourceClasses:
    """Resolve one of `PRESETS`, or terms with commas between: all, ilsvrc, random:1000:0, subtree:NOUN, a wnid, a file.

    all, random and subtree take `available` wnids only. An error names the term that cannot be resolved.

    >>> len(choose("ilsvrc", fall_2011()).wnids)
    1000
    """
    wnids: set[str] = set()
    added = []
    wordnet = cache(wordnet)  # 80,000 nouns take a second to read
    for term in map(str.strip, PRESETS.get(spec.lower(), spec).split(",")):
        new = _resolve(term, sorted(set(available)), wordnet) - wnids
        added.append((term, len(new)))
        wnids |= new
    return SourceClasses(tuple(sorted(wnids)), tuple(added))


def differences_from_paper(choice: SourceClasses) -> list[str]:
    """Subtrees of a choice that have other numbers of classes than PRE-1512's."""
    counts = {term.removeprefix("subtree:"): count for term, count in choice.added if term.startswith("subtree:")}
    return [
        f"{noun}: {counts[noun]} classes, {expected} in the paper"
        for noun, expected in PAPER_SUBTREES.items()
        if counts.get(noun, expected) != expected
    ]


def _resolve(term: str, available: list[str], wordnet: Callable[[], WordNet]) -> set[str]:
    kind, _, rest = term.partition(":")
    if term == "all":
        return set(available)
    if term == "ilsvrc":
        return set(ilsvrc())
    if _WNID.fullmatch(term):
        return {term}
    if kind == "random":
        return _draw(term, rest, available)
    if kind == "subtree":
        nouns = wordnet()
        if not all(wnid in nouns for wnid in ilsvrc()):  # offsets differ between WordNet's versions
            raise DensescoreError(f"{nouns.folder}: not WordNet 3.0: its offsets are not ImageNet's wnids")
        return set(nouns.subtree(nouns.find(rest))) & set(available)
    if Path(term).is_file():
        return _read_list(Path(term))
    raise DensescoreError(
        f"classes: cannot resolve {term!r}; expected all, ilsvrc, random:COUNT:SEED, subtree:NOUN, a wnid "
        f"(n and 8 digits), a file of wnids, or {', '.join(PRESETS)} alone"
    )


def _draw(term: str, rest: str, available: list[str]) -> set[str]:
    if not (match := re.fullmatch(r"(\d+):(\d+)", rest)):
        raise DensescoreError(f"classes: expected random:COUNT:SEED, got {term!r}")
    count, seed = int(match[1]), int(match[2])
    if not 0 < count <= len(available):
        raise DensescoreError(f"classes: {term} asks for {count} of {len(available)} available classes")
    return set(np.random.default_rng(seed).choice(available, count, replace=False).tolist())


def _read_list(path: Path) -> set[str]:
    wnids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    for number, wnid in enumerate(wnids, 1):
        if not _WNID.fullmatch(wnid):
            raise DensescoreError(f"{path}: entry {number}: expected a wnid (n and 8 digits), got {wnid!r}")
    if not wnids:
        raise DensescoreError(f"{path}: holds no wnid")
    return set(wnids)
