"""Fonts for labels in any script: matplotlib's default font has no Chinese, Japanese, Korean, … letters."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from densescore.errors import DensescoreWarning

_BOXES = "Last Resort"  # matplotlib's font of boxes that name a letter's script


@contextmanager
def complete_fonts(figure: Figure) -> Iterator[None]:
    """While a figure is drawn, installed fonts give the letters that the default font lacks."""
    usual = FontProperties()
    for text in figure.findobj(Text):
        missing = [letter for letter in text.get_text() if not _has(findfont(usual), letter)]
        families = dict.fromkeys(family for family in map(_family_with, missing) if family is not None)
        if families:
            text.set_fontfamily([*usual.get_family(), *families])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `_family_with` has said so
        yield


@lru_cache(maxsize=4096)
def _family_with(letter: str) -> str | None:
    for font in fontManager.ttflist:
        if not font.name.startswith(_BOXES) and _has(font.fname, letter):
            return font.name
    _warn()
    return None


@lru_cache(maxsize=1)
def _warn() -> None:
    text = "no installed font has all letters of the labels, which pictures show as boxes; Noto Sans CJK has many"
    warnings.warn(text, DensescoreWarning, stacklevel=2)


def _has(path: str, letter: str) -> bool:
    return letter.isspace() or ord(letter) in _letters(path)


@lru_cache(maxsize=256)
def _letters(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())
