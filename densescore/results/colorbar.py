"""The scale beside a map: a few ticks, with as many digits as tell them apart."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure

_MOST_DIGITS = 9  # of a float32


def add_colorbar(
    figure: Figure,
    axes: Axes | Sequence[Axes],
    norm: Normalize,
    colormap: str | Colormap,
    label: str,
    *,
    fraction: float = 0.046,
    pad: float = 0.02,
) -> Colorbar:
    """Add the scale of a map to the right of its axes; `fraction` and `pad` are matplotlib's.

    matplotlib's own ticks print over each other on short bars and on scales that are not linear, and write a narrow
    range as an offset above the bar.
    """
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    ticks: tuple[float, ...] = (low, 0.1, 0.5, high) if isinstance(norm, PowerNorm) else (low, (low + high) / 2, high)
    if not low < ticks[1] < high:  # a map of one value, in float32
        ticks = (low,)
    bar = figure.colorbar(ScalarMappable(norm, colormap), ax=axes, fraction=fraction, pad=pad, label=label)
    bar.set_ticks(ticks, labels=short_numbers(ticks))
    bar.minorticks_off()
    return bar


def short_numbers(values: Sequence[float]) -> list[str]:
    """Numbers with as few significant digits, two or more, as make all of them different.

    Example:
        >>> short_numbers([0, 0.0912, 0.18239]), short_numbers([0.1234561, 0.1234565, 0.1234569])
        (['0', '0.091', '0.18'], ['0.1234561', '0.1234565', '0.1234569'])
    """
    for digits in range(2, _MOST_DIGITS + 1):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(values):
            break
    return texts
