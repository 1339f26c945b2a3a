"""Which classes of ImageNet a network is pre-trained on: the paper's four choices, or any other."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from timm.data.imagenet_info import ImageNetInfo

from densescore.errors import DensescoreError
from densescore.paper.pretrain.wordnet import WordNet

PAPER_SUBTREES = {
    "hoofed mammal": 276,
    "furniture": 165,
    "motor vehicle": 48,
    "public transport": 18,
    "bicycle": 5,
}
"""What PRE-1512 adds to the 1,000 classes, and how many of each: Section 5.1 of the paper. 512 in all."""

PRESETS = {
    "pre-1000c": "ilsvrc",
    "pre-1000r": "random:1000:0",
    "pre-1512": ",".join(["ilsvrc", *(f"subtree:{noun}" for noun in PAPER_SUBTREES)]),
}
"""The paper's names for its choices."""


@cache
def ilsvrc() -> tuple[str, ...]:
    """The wnids of ILSVRC 2012's 1,000 classes, sorted."""
    return tuple(sorted(ImageNetInfo("imagenet-1k").label_names()))


@cache
def fall_2011() -> tuple[str, ...]:
    """The wnids of the 21,841 synsets for which ImageNet's release of fall 2011 has images, sorted."""
    return tuple(sorted(ImageNetInfo("imagenet-22k").label_names()))


@dataclass(frozen=True)
class SourceClasses:
    """A choice of classes.

    Attributes:
        wnids: sorted, each once; the order of the network's outputs.
        added: (term of the choice, how many classes it brought that no term before it had), in order.
    """

    wnids: tuple[str, ...]
    added: tuple[tuple[str, int], ...]


def choose(spec: str, available: Sequence[str], wordnet: Callable[[], WordNet] = WordNet) -> SourceClasses:
    """Resolve a choice of source classes.

    Args:
        spec: terms with commas between, each adding to those before it: ``all`` (every available class), ``ilsvrc``
            (the 1,000), ``random:1000:0`` (as many of the available ones, drawn with that seed), ``subtree:furniture``
            (the available ones among a noun's kinds, and itself), a wnid, or a file with a wnid at the start of each
            line. Or one of `PRESETS`.
        available: wnids for which there are images.
        wordnet: gives WordNet 3.0, where a subtree asks for it.

    Returns:
        The classes. Those that a term names (ilsvrc, a wnid, a file) are kept though they be not available.

    Raises:
        DensescoreError: names the term that cannot be resolved.

    Example:
        >>> choice = choose("ilsvrc", fall_2011())
        >>> len(choice.wnids), choice.wnids[0]
        (1000, 'n01440764')
    """
    wnids: set[str] = set()
    added = []
    once = cache(wordnet)  # 80,000 nouns take a second to read
    for term in PRESETS.get(spec.lower(), spec).split(","):
        found = _resolve(term.strip(), sorted(set(available)), once) - wnids
        added.append((term.strip(), len(found)))
        wnids |= found
    return SourceClasses(tuple(sorted(wnids)), tuple(added))


def differences_from_paper(choice: SourceClasses) -> list[str]:
    """Where a choice's subtrees bring another number of classes than PRE-1512's; empty if it agrees."""
    counts = {term.removeprefix("subtree:"): count for term, count in choice.added if term.startswith("subtree:")}
    return [
        f"{noun}: {counts[noun]} classes, {expected} in the paper"
        for noun, expected in PAPER_SUBTREES.items()
        if noun in counts and counts[noun] != expected
    ]


def _resolve(term: str, available: list[str], wordnet: Callable[[], WordNet]) -> set[str]:
    kind, _, rest = term.partition(":")
    if term == "all":
        return set(available)
    if term == "ilsvrc":
        return set(ilsvrc())
    if re.fullmatch(r"n\d{8}", term):
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
        if not re.fullmatch(r"n\d{8}", wnid):
            raise DensescoreError(f"{path}: entry {number}: expected a wnid (n and 8 digits), got {wnid!r}")
    if not wnids:
        raise DensescoreError(f"{path}: holds no wnid")
    return set(wnids)
