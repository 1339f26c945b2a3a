"""What WordNet's nouns mean among ImageNet's 1,000 classes: dog is 118 of them.

The table, ``imagenet_groups.txt``, is what `densescore.paper.pretrain.imagenet_groups` makes of WordNet 3.0, whose
license lies beside it.
"""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Meaning(NamedTuple):
    """A synset of WordNet that is one of the 1,000 classes, or above some of them.

    Attributes:
        wnid: its number in WordNet 3.0, such as ``n02084071``.
        words: its nouns.
        columns: the classes, as columns of a network's output.
        is_class: it is itself the class.
    """

    wnid: str
    words: tuple[str, ...]
    columns: tuple[int, ...]
    is_class: bool


class _Sense(NamedTuple):
    word: str
    number: int  # 1: the word's most frequent sense; also where it is the only one here
    meaning: Meaning


def meanings_of(name: str) -> list[Meaning]:
    """All that a noun, in any case, or a wnid stands for, its most frequent sense first.

    Example:
        >>> [(meaning.words[0], len(meaning.columns)) for meaning in meanings_of("Cat")]
        [('cat', 7), ('big cat', 6)]
    """
    return [sense.meaning for sense in _senses().get(name.casefold(), [])]


def spelling(name: str) -> str:
    """A noun in WordNet's own case.

    Example:
        >>> spelling("DOG"), spelling("welsh Corgi")
        ('dog', 'Welsh corgi')
    """
    return _senses()[name.casefold()][0].word


def main_meaning(meanings: list[Meaning]) -> Meaning | None:
    """The meaning that somebody who says no more has in mind; None where that is not clear.

    It is the most frequent sense, if it also has more of the classes than any other: cat is the true cat, not the big
    cat. A plant is ambiguous: more often a factory, while more of the classes are flowers.

    Args:
        meanings: of one noun, as `meanings_of` gives them.
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
    found = defaultdict(list)
    for line in Path(__file__).with_name("imagenet_groups.txt").read_text("utf-8").splitlines():
        wnid, columns, words = line.split("\t")
        numbered = [word.partition("=") for word in words.split(", ")]
        is_class = columns.startswith("class ")
        found_columns = tuple(_columns(columns.removeprefix("class ")))
        meaning = Meaning(wnid, tuple(word for word, _, _ in numbered), found_columns, is_class)
        for word, _, number in [*numbered, (wnid, "", "")]:
            found[word.casefold()].append(_Sense(word, int(number or 1), meaning))
    return {word: sorted(senses, key=lambda sense: sense.number) for word, senses in found.items()}


def _columns(text: str) -> list[int]:
    """``"1-3 7"`` → 1, 2, 3, 7."""
    runs = [run.split("-") for run in text.split()]
    return [column for run in runs for column in range(int(run[0]), int(run[-1]) + 1)]
