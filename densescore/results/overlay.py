"""A response map drawn over its photograph: where a class is, at a glance."""

import os
from typing import Any, Literal, TypeAlias, get_args

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.images import Pixels
from densescore.io.names import as_text
from densescore.results.regions import Box, find_regions
from densescore.results.scores import DenseScores, Place

Colors = Literal["relative", "absolute", "rescaled"]
"""``"relative"``: from nothing, transparent, to the map's own peak. ``"absolute"``: one scale of scores, 0 to 1, for
every picture. ``"rescaled"``: from the map's minimum to its maximum."""

Map: TypeAlias = NDArray[Any]
"""Float32 ``[H, W]``."""

_LONGEST_SIDE = 1000  # pixels of the photograph in the picture
_FLOOR = 0.4  # of the peak: below, the photograph is bare
_SMOOTHING = 0.012  # standard deviation, of the longer side
_FAINT = 0.05  # peaks below this score are drawn fainter, so that a class that is not there does not shine


def draw_overlay(
    image: Pixels,
    scores: DenseScores,
    label: str,
    path: str | os.PathLike[str],
    *,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str | Colormap = "turbo",
) -> None:
    """Draw a class's response map over its image to a PNG file.

    By default the map fades out where the class does not respond, so that only the place of the class is colored. A
    line marks half of the peak, a cross the class's location (`DenseScores.locate`), a frame the region around it; the
    title says how high the peak is.

    Args:
        image: RGB ``[H, W, 3]``, the pixels that were scored.
        scores: of the image.
        label: the class.
        path: of the PNG.
        colors: see `Colors`.
        opacity: of the color at the peak, in [0, 1].
        colormap: of matplotlib.

    Raises:
        DensescoreError: no such class, another image, or an unknown choice.
    """
    if colors not in get_args(Colors):
        raise DensescoreError(f"colors must be one of {', '.join(get_args(Colors))}, got {colors!r}")
    if not 0 <= opacity <= 1:
        raise DensescoreError(f"opacity must lie in [0, 1], got {opacity}")
    height, width = image.shape[:2]
    inches = _LONGEST_SIDE / 100 / max(height, width)
    figure = Figure(figsize=(max(width * inches, 3) + 1.2, max(height * inches, 2) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    norm = draw_map(axes, image, scores, label, colors=colors, opacity=opacity, colormap=colormap)
    axes.set_title(describe_peak(scores, label), parse_math=False)
    figure.colorbar(
        ScalarMappable(norm, colormap),
        ax=axes,
        fraction=0.046,
        pad=0.02,
        label="mean score of the patches over a pixel",
    )
    figure.savefig(path, dpi=100, format="png")


def draw_map(
    axes: Axes,
    image: Pixels,
    scores: DenseScores,
    label: str,
    *,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str | Colormap = "turbo",
    peak: float | None = None,
) -> Normalize:
    """Draw a photograph and a class's map on axes; see `draw_overlay`.

    Args:
        axes: to draw on.
        image: RGB ``[H, W, 3]``.
        scores: of the image.
        label: the class.
        colors: see `Colors`.
        opacity: of the color at the peak.
        colormap: of matplotlib.
        peak: score at the upper end of ``"relative"`` colors, for pictures side by side; the map's own by default.

    Returns:
        What maps scores to colors.
    """
    height, width = image.shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    axes.imshow(image, extent=extent, interpolation="antialiased")
    axes.set_axis_off()
    if colors == "relative":
        values = scores.shrunk_map(label)[0].cpu().numpy()  # few patches hold a pixel at the border: no stripes there
        values = cv2.GaussianBlur(
            values, (0, 0), _SMOOTHING * max(height, width)
        )  # the steps of the cells are no signal
        norm, alpha = _relative(values, peak or float(values.max()), opacity)
        axes.imshow(values, cmap=colormap, norm=norm, alpha=alpha, extent=extent)
        box = None if scores.object_boxes is None else scores.find_boxes(label, max_regions=1)[0].box
        _mark(axes, values, scores.locate(label)[0], box)
        return norm
    values = scores.response_map(label)[0].cpu().numpy()
    if colors == "absolute":
        # A mean over all patches of all scales is small even on the object: the square root spreads small values.
        norm = PowerNorm(0.5, 0.0, 1.0, clip=True)
    else:
        norm = Normalize(float(values.min()), float(values.max()), clip=True)
    axes.imshow(
        values, cmap=colormap, norm=norm, alpha=opacity * (0.12 + 0.88 * np.asarray(norm(values))), extent=extent
    )
    return norm


def describe_peak(scores: DenseScores, label: str) -> str:
    """The class and the height of its response (`DenseScores.shrunk_map`), in words."""
    peak = float(scores.shrunk_map(label).max())
    strength = "no" if peak < 0.005 else "weak" if peak < _FAINT else "clear" if peak < 0.3 else "strong"
    return f"{as_text(label)}: {strength} response, peak {peak:.2g}"


def _relative(values: Map, peak: float, opacity: float) -> tuple[Normalize, NDArray[np.float64]]:
    """Colors from 0 to the peak, and an opacity that is 0 up to a floor and grows with the response."""
    low = max(_FLOOR * peak, float(values.min()))
    rise = np.clip((values - low) / max(peak - low, 1e-12), 0, 1)  # [H, W]
    return Normalize(0.0, max(peak, 1e-12), clip=True), opacity * min(1.0, (peak / _FAINT) ** 0.5) * rise**0.8


def _mark(axes: Axes, values: Map, place: Place, box: Box | None) -> None:
    """A cross at the location; where the map falls to half of its peak, a line; and a frame.

    The frame is the box, or without one, around the region of the highest pixel.
    """
    axes.plot(place.x, place.y, "+", color="white", markersize=16, mew=2.5)
    half = float(values.max()) / 2
    if half <= float(values.min()):
        return
    height, width = values.shape
    axes.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, values, levels=[half], colors="white", linewidths=1.5)
    x0, y0, x1, y1 = box or find_regions(values)[0].box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linestyle="--", linewidth=1.2))
