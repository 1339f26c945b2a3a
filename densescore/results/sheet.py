"""The paper's Figure 1 of any photograph: the photograph and the maps of some classes, side by side, on one scale."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.colors import Colormap

from densescore.errors import DensescoreError
from densescore.io.images import Pixels
from densescore.io.names import as_text
from densescore.results.colorbar import add_colorbar
from densescore.results.overlay import COLOR_BAR, Colors, check_look, draw_map, draw_photograph
from densescore.results.picture import Picture
from densescore.results.thumbnails import smaller

if TYPE_CHECKING:
    from densescore.results.scores import DenseScores

_WIDTH, _HEIGHT = 1800, 1000  # pixels that the panels of a sheet may take together
_TITLE, _GAP, _BAR = 42, 12, 110  # pixels above a panel, beside it, and of the color bar
_CHARACTER = 7.5  # pixels of a title's character
_SIDE = 640  # pixels of what is drawn in a panel


def sheet(
    image: Pixels,
    scores: "DenseScores",
    labels: Sequence[str],
    *,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str | Colormap = "turbo",
) -> Picture:
    """Draw a photograph and the maps of classes on one scale: the same color is the same score in all of them.

    Args:
        image: RGB ``[H, W, 3]``, the pixels that were scored.
        scores: of the image.
        labels: the classes, at least one.
        colors: ``"relative"``: from 0 to the highest peak among the classes. ``"absolute"``: from 0 to 1.
        opacity: of the color at the upper end of the scale, in [0, 1].
        colormap: of matplotlib.

    Raises:
        DensescoreError: no class, no such class, or an unknown choice.
    """
    check_sheet_look(colors, opacity, colormap)
    labels = scores.select(labels).labels
    if not labels:
        raise DensescoreError("a sheet needs at least one class, got none")
    scores = smaller(scores, _SIDE)  # its maps are all that is drawn
    confidence = scores.select(labels).confidence().tolist()
    peak = float(scores.shrunk_map(labels).max())
    height, width = image.shape[:2]
    columns, panel = arrange(1 + len(labels), width / height)
    rows = -(-(1 + len(labels)) // columns)
    figure = Picture(columns * panel + _BAR, rows * (panel * height / width + _TITLE))
    figure.set_layout_engine("constrained", w_pad=_GAP / 200, h_pad=_GAP / 200, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    draw_photograph(axes[0], image, _SIDE)
    axes[0].set_title("the photograph", fontsize=10)
    characters = max(12, int(panel / _CHARACTER))
    for place, label, value in zip(axes[1:], labels, confidence, strict=False):
        norm = draw_map(
            place, image, scores, label, colors=colors, opacity=opacity, colormap=colormap, peak=peak, side=_SIDE
        )
        name = textwrap.shorten(as_text(label), characters, placeholder="…")
        title = f"{name}\nconfidence {value:.2g}"
        place.set_title(title, fontsize=10, parse_math=False)
    for place in axes[1 + len(labels) :]:
        place.set_axis_off()
    add_colorbar(figure, list(axes), norm, colormap, COLOR_BAR, fraction=0.02, pad=0.01)
    return figure


def check_sheet_look(colors: Colors, opacity: float, colormap: str | Colormap) -> None:
    """As `check_look`; maps that are each on a scale of their own are refused, too.

    Raises:
        DensescoreError: names the argument.
    """
    check_look(colors, opacity, colormap)
    if colors == "rescaled":
        raise DensescoreError("a sheet has one scale: colors must be relative or absolute, got 'rescaled'")


def arrange(count: int, aspect: float) -> tuple[int, float]:
    """Columns and width in pixels of so many panels of one aspect ratio (width over height), as large as they can be.

    Of arrangements alike in size, the one that leaves the fewest places empty.

    Example:
        >>> arrange(7, 1.5)
        (4, 450.0)
    """

    def panel(columns: int) -> float:
        rows = math.ceil(count / columns)
        return max(1.0, min(_WIDTH / columns, (_HEIGHT / rows - _TITLE) * aspect))

    def filled(columns: int) -> float:
        return panel(columns) ** 2 * count / (math.ceil(count / columns) * columns)

    columns = max(range(1, count + 1), key=filled)
    return columns, panel(columns)
