"""Names of files and classes: kept as they are in results, and made into distinct file names."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_MOST_BYTES = 200
"""Of a file name that we choose: file systems take 255, and suffixes come on top."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""What Windows takes for devices."""


def as_text(name: str) -> str:
    r"""A file name or label as valid Unicode, for tables and JSON; `from_text` gives it back exactly.

    Nearly every name stands for itself. One that is not valid Unicode (Python reads a file name's bytes that are not
    UTF-8 as lone surrogates) is written as a JSON string, in quotes and escaped; so is one that begins with a quote,
    which keeps the two apart.

    Example:
        >>> as_text("café.png"), as_text("caf\udce9.png")
        ('café.png', '"caf\\udce9.png"')
    """
    return name if is_unicode(name) and not name.startswith('"') else json.dumps(name)


def from_text(text: str) -> str:
    """The name that `as_text` wrote. Of a file name, ``os.fsencode`` gives the bytes."""
    return str(json.loads(text)) if text.startswith('"') else text


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: it holds no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_message(text: str) -> str:
    """A message as valid Unicode: lone surrogates are escaped, everything else stays."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_values(value: Any) -> Any:
    """Plain values with `as_text` applied to each string in them, at any depth; keys of mappings stay."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, dict):
        return {key: text_values(item) for key, item in value.items()}
    return [text_values(item) for item in value] if isinstance(value, list | tuple) else value


def shorten(name: str) -> str:
    """A name that file systems take: if it has more than 200 bytes, its beginning and a digest of all of it."""
    data = os.fsencode(name) if is_fs_name(name) else name.encode("utf-8", "backslashreplace")
    if len(data) <= _MOST_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _MOST_BYTES - 17].decode('utf-8', 'ignore')}-{digest}"


def is_fs_name(name: str) -> bool:
    """Whether the file system's encoding can hold a name: it is Unicode, or was read from undecodable bytes."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def label_file_names(labels: Iterable[str]) -> list[str]:
    """A file name, without suffix, for each of a network's classes: the label in plain characters.

    The names depend on the network's labels alone, not on which of them are written. No two are alike, also where a
    file system takes upper and lower case, or composed and decomposed accents, for the same.

    Example:
        >>> label_file_names(["Egyptian cat", "a/b", "a b", "A_B"])
        ['Egyptian_cat', 'a_b', 'a_b-2', 'A_B-3']
    """
    return distinct(re.sub(r"[^\w.-]+", "_", label).strip("._") or "class" for label in labels)


def folder_names(stems: Iterable[str]) -> list[str]:
    """A folder name for each picture of a run: its stem; of several pictures of one stem the later ones are numbered.

    Example:
        >>> folder_names(["cat", "dog", "cat", "."])
        ['cat', 'dog', 'cat-2', 'image']
    """
    return distinct(stem.rstrip(". ") or "image" for stem in stems)


def distinct(names: Iterable[str]) -> list[str]:
    """Make names distinct, in order; where one is taken, it is the first free of ``name-2``, ``name-3``, and so on."""
    taken: set[str] = set()
    last: dict[str, int] = {}
    found = []
    for given in names:
        name = shorten(f"{given}_" if _RESERVED.fullmatch(given) else given)
        candidate, number = name, last.get(name, 1)
        while _folded(candidate) in taken:
            number += 1
            candidate = f"{name}-{number}"
        last[name] = number
        taken.add(_folded(candidate))
        found.append(candidate)
    return found


def _folded(name: str) -> str:
    """What a file system that is blind to case and composition may take a name for."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).casefold()


def unique_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels that all differ: each of those that repeat gets its index, ``crane (134)`` and ``crane (517)``.

    Example:
        >>> unique_labels(["crane", "dog", "crane"])
        ('crane (0)', 'dog', 'crane (2)')
    """
    given = list(labels)
    counts: dict[str, int] = {}
    for label in given:
        counts[label] = counts.get(label, 0) + 1
    if len(counts) == len(given):
        return tuple(given)
    found = [f"{label} ({index})" if counts[label] > 1 else label for index, label in enumerate(given)]
    return unique_labels(found)  # "crane (0)" may have been a label itself
