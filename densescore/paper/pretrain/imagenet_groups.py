"""Makes ``densescore/models/imagenet_groups.txt``: WordNet's nouns that stand for some of ImageNet's 1,000 classes.

``python -m densescore.paper.pretrain.imagenet_groups FILE --wordnet FOLDER``. One line per synset, in the order of the
wnids: wnid, the columns of the classes below it (or ``class`` and its column), and its words. A word that has
several of these meanings is followed by ``=`` and the number of its sense in WordNet, which counts from the most
frequent one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated

import cyclopts

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.paper.pretrain.source_classes import DEFAULT_WORDNET, WordNet, ilsvrc


def group_lines(folder: Path = DEFAULT_WORDNET) -> list[str]:
    """The lines of the table, from WordNet 3.0's ``data.noun`` and ``index.noun`` in `folder`."""
    nouns, senses = WordNet(folder), _senses(folder / "index.noun")
    columns: dict[str, set[int]] = defaultdict(set)
    for column, wnid in enumerate(ilsvrc()):
        for above in nouns.and_above(wnid):
            columns[above].add(column)
    classes = {wnid: f"class {column}" for column, wnid in enumerate(ilsvrc())}
    words = {wnid: nouns.name(wnid).split(", ") for wnid in sorted(columns)}
    counts = Counter(word.casefold() for synonyms in words.values() for word in synonyms)

    def numbered(word: str, wnid: str) -> str:
        several = counts[word.casefold()] > 1
        return f"{word}={senses[word.casefold()].index(wnid) + 1}" if several else word

    return [
        f"{wnid}\t{classes.get(wnid) or ranges(columns[wnid])}\t{', '.join(numbered(word, wnid) for word in synonyms)}"
        for wnid, synonyms in words.items()
    ]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in few characters.

    >>> ranges({3, 1, 2, 7})
    '1-3 7'
    """
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        runs.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}")
    return " ".join(runs)


def _senses(path: Path) -> dict[str, list[str]]:
    """Word in lower case → its synsets, the most frequent sense first."""
    if not path.is_file():
        raise DensescoreError(f"{path}: no such file; WordNet 3.0 has it beside data.noun")
    senses = {}
    for line in path.read_text("latin-1").splitlines():
        if not line.startswith(" "):  # the license
            word, _, count, *rest = line.split()
            senses[word.replace("_", " ")] = [f"n{offset}" for offset in rest[-int(count) :]]
    return senses


def _main(
    out: Annotated[Path, cyclopts.Parameter(help="The table to write.")],
    wordnet: Annotated[
        Path, cyclopts.Parameter(help="Folder of WordNet 3.0's data.noun and index.noun.")
    ] = DEFAULT_WORDNET,
) -> None:
    with atomic_write(out, overwrite=True) as temporary:
        temporary.write_text("\n".join(group_lines(wordnet)) + "\n", "utf-8")


if __name__ == "__main__":
    cyclopts.run(_main)
