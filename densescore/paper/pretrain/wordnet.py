"""Nouns of WordNet 3.0 and what lies under them; their offsets are ImageNet's wnids.

Only ``data.noun`` is read, whose format ``man 5 wndb`` gives: nltk's reader also asks for a file ``lexnames`` that
Debian's package lacks, and wn reads another format.
"""

import os
from pathlib import Path

from densescore.errors import DensescoreError

DEFAULT_WORDNET = Path("/usr/share/wordnet")
"""Where Debian's and Ubuntu's package ``wordnet-base`` puts WordNet 3.0."""


class WordNet:
    """The noun hierarchy.

    Args:
        folder: holds WordNet 3.0's ``data.noun``.

    Raises:
        DensescoreError: there is no such file, or it is not in WordNet's format.
    """

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
        """Take in a line: ``offset lexfile type words (word id)… pointers (symbol offset type source)…``."""
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
        """The wnid of a noun of a single meaning, or of a wnid itself.

        Raises:
            DensescoreError: there is none, or the noun has several; the message gives their wnids.
        """
        if noun in self:
            return noun
        found = [wnid for wnid, words in self._words.items() if noun.replace("_", " ") in words]
        if len(found) == 1:
            return found[0]
        meanings = "; ".join(f"{wnid} ({self.name(wnid)})" for wnid in found)
        raise DensescoreError(
            f"{noun!r} has {len(found)} meanings, choose one by its wnid: {meanings}"
            if found
            else f"{self.folder}: WordNet has no noun {noun!r}"
        )

    def subtree(self, wnid: str) -> list[str]:
        """The synset and all kinds of it, sorted; classes only, no instances (Secretariat is no kind of horse)."""
        return _reached(wnid, self._hyponyms)

    def and_above(self, wnid: str) -> list[str]:
        """The synset and all that it is a kind of, sorted."""
        return _reached(wnid, self._hypernyms)


def _reached(start: str, links: dict[str, list[str]]) -> list[str]:
    found: set[str] = set()
    left = [start]
    while left:
        current = left.pop()
        if current not in found:
            found.add(current)
            left += links[current]
    return sorted(found)
