"""Names of files and classes: written reversibly into results, and made into distinct file names."""

import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from densescore.errors import DensescoreError

_MAX_BYTES = 200  # of a file name; file systems take 255, and suffixes come on top
_SURROGATE = re.compile("[\ud800-\udfff]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' devices


def refuse_url(name: str | os.PathLike[str]) -> None:
    """Raise an error for the address of a file on the web: nothing is downloaded."""
    if match := re.match(r"(https?|ftp|s3):/+(.*)", os.fspath(name)):  # a `Path` has one slash
        raise DensescoreError(
            f"{match[1]}://{match[2]}: is on the web: it must be downloaded first, and named as a file"
        )


def as_text(name: str) -> str:
    """A file name or label as valid Unicode, for tables and JSON; `from_text` is the inverse.

    A name with lone surrogates (bytes that are not UTF-8), or that begins with a quote, becomes a JSON string.
    """
    return name if is_unicode(name) and not name.startswith('"') else json.dumps(name)


def from_text(text: str) -> str:
    """Inverse of `as_text`; ``os.fsencode`` gives the bytes of a file name."""
    return str(json.loads(text)) if text.startswith('"') else text


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: no lone surrogates."""
    return not _SURROGATE.search(text)


def as_message(text: str) -> str:
    """A message as valid Unicode: lone surrogates are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_values(value: Any) -> Any:
    """Plain values with `as_text` applied to each string, at any depth; keys of dicts stay."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, dict):
        return {key: text_values(item) for key, item in value.items()}
    return [text_values(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(value: Any, **options: Any) -> str:
    """JSON of plain values, the only way to it here: an undefined number is None.

    NaN and infinity, which JSON lacks, raise `DensescoreError` with their place.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        places = ", ".join(f"{place} is {number}" for place, number in _not_finite(value, "value"))
        raise DensescoreError(f"cannot be written as JSON: {places or error}; expected finite numbers") from error


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{place}[{key!r}]")


def shorten(name: str) -> str:
    """A name of at most 200 bytes: a longer one becomes its beginning and a digest of the whole."""
    try:
        data = os.fsencode(name)
    except UnicodeEncodeError:
        data = name.encode("utf-8", "backslashreplace")
    if len(data) <= _MAX_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _MAX_BYTES - 17].decode('utf-8', 'ignore')}-{digest}"


def label_file_names(labels: Iterable[str]) -> list[str]:
    """Distinct file names, without suffix, of all classes of a network: labels in plain characters."""
    return distinct(re.sub(r"[^\w.-]+", "_", label).strip("._") or "class" for label in labels)


def folder_names(stems: Iterable[str]) -> list[str]:
    """Distinct folder names of pictures: stems, numbered where they repeat."""
    return distinct(stem.rstrip(". ") or "image" for stem in stems)


def distinct(names: Iterable[str]) -> list[str]:
    """Distinct file names, in order; a taken one becomes ``name-2``, ``name-3``, … . Case and accents do not count."""
    taken: set[str] = set()
    last: dict[str, int] = {}
    results = []
    for name in names:
        name = shorten(f"{name}_" if _RESERVED.fullmatch(name) else name)
        candidate, number = name, last.get(name, 1)
        while folded(candidate) in taken:
            number += 1
            candidate = f"{name}-{number}"
        last[name] = number
        taken.add(folded(candidate))
        results.append(candidate)
    return results


def folded(name: str) -> str:
    """A name as it is compared without case and composition of accents."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).casefold()


def unique_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels that all differ: those that repeat get their index, ``crane (134)`` and ``crane (517)``."""
    labels = tuple(labels)
    counts = Counter(labels)
    unique = []
    for index, label in enumerate(labels):
        if counts[label] > 1:
            label = f"{label} ({index})"
            while label in counts:  # a label itself
                label += f" ({index})"
        unique.append(label)
    return tuple(unique)
