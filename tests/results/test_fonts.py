"""Labels in scripts that the default font lacks."""

import warnings

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from densescore.errors import DensescoreWarning
from densescore.results import fonts
from densescore.results.draw import Picture


def draw(label: str) -> Picture:
    picture = Picture(300, 60)
    picture.suptitle(label, parse_math=False)
    picture.encode()
    return picture


def test_an_installed_font_gives_letters_that_the_usual_one_lacks() -> None:
    usual = set(get_font(findfont(FontProperties())).get_charmap())
    others = [font.fname for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    letter = chr(min(set().union(*(get_font(name).get_charmap() for name in others)) - usual))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        title = draw(f"a {letter}").texts[0]
        assert len(title.get_fontfamily()) > len(draw("a cat").texts[0].get_fontfamily())


def test_a_letter_that_no_font_has_is_said_once() -> None:
    fonts._warn.cache_clear()
    fonts._family_with.cache_clear()
    with pytest.warns(DensescoreWarning, match="no installed font has all letters") as caught:
        first, second = draw("\U0010fffd a"), draw("\U0010fffc")
    assert sum(issubclass(warning.category, DensescoreWarning) for warning in caught) == 1
    assert np.frombuffer(first.encode(), np.uint8).any()
    assert second.encode().startswith(b"\x89PNG")
