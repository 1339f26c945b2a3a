"""A response map drawn over its photograph: where a class is, at a glance."""

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.images import Pixels
from densescore.io.names import as_text
from densescore.results.colorbar import add_colorbar
from densescore.results.picture import Picture
from densescore.results.regions import Box, find_regions
from densescore.results.thumbnails import fit, smaller

if TYPE_CHECKING:
    from densescore.results.scores import DenseScores, Place

Colors = Literal["relative", "absolute", "rescaled"]
"""``"relative"``: from nothing, transparent, to the map's own peak. ``"absolute"``: one scale of scores, 0 to 1, for
every picture. ``"rescaled"``: from the map's minimum to its maximum."""

Map: TypeAlias = NDArray[Any]
"""Float32 ``[H, W]``."""

COLOR_BAR = "mean score of the patches over a pixel"
"""What the numbers beside the colors are."""

_LONGEST_SIDE = 1000  # pixels of the photograph in the picture
_FLOOR = 0.4  # of the peak: below, the photograph is bare
_SMOOTHING = 0.012  # standard deviation, of the longer side
_FAINT = 0.05  # peaks below this score are drawn fainter, so that a class that is not there does not shine


def draw_overlay(
    image: Pixels,
    scores: "DenseScores",
    label: str,
    path: str | os.PathLike[str],
    *,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str | Colormap = "turbo",
) -> None:
    """Draw a class's response map over its image to a PNG file; see `overlay`."""
    picture = overlay(image, scores, label, colors=colors, opacity=opacity, colormap=colormap)
    picture.savefig(path, format="png")


def overlay(
    image: Pixels,
    scores: "DenseScores",
    label: str,
    *,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str | Colormap = "turbo",
) -> Picture:
    """Draw a class's response map over its image.

    By default the map fades out where the class does not respond, so that only the place of the class is colored. A
    line marks half of the peak, a cross the class's location (`DenseScores.locate`), a frame the region around it; the
    title says how high the peak is.

    Args:
        image: RGB ``[H, W, 3]``, the pixels that were scored.
        scores: of the image.
        label: the class.
        colors: see `Colors`.
        opacity: of the color at the peak, in [0, 1].
        colormap: of matplotlib.

    Raises:
        DensescoreError: no such class, another image, or an unknown choice.
    """
    check_look(colors, opacity, colormap)
    height, width = image.shape[:2]
    zoom = _LONGEST_SIDE / max(height, width)
    figure = Picture(max(width * zoom, 300) + 120, max(height * zoom, 200) + 60)
    axes = figure.add_subplot()
    norm = draw_map(axes, image, scores, label, colors=colors, opacity=opacity, colormap=colormap)
    axes.set_title(describe_peak(scores, label), parse_math=False)
    text = COLOR_BAR if height * zoom > 350 else "mean score"  # as long as the bar of a panorama
    add_colorbar(figure, axes, norm, colormap, text)
    return figure


def check_look(colors: Colors, opacity: float, colormap: str | Colormap) -> None:
    """Refuse choices that no picture could be drawn with.

    Raises:
        DensescoreError: names the argument.
    """
    if colors not in get_args(Colors):
        raise DensescoreError(f"colors must be one of {', '.join(get_args(Colors))}, got {colors!r}")
    if not 0 <= opacity <= 1:
        raise DensescoreError(f"opacity must lie in [0, 1], got {opacity}")
    if isinstance(colormap, str) and colormap not in matplotlib.colormaps:
        raise DensescoreError(f"colormap: matplotlib has none named {colormap!r}; viridis, magma and turbo are some")


def draw_map(
    axes: Axes,
    image: Pixels,
    scores: "DenseScores",
    label: str,
    *,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str | Colormap = "turbo",
    peak: float | None = None,
    side: int = _LONGEST_SIDE,
) -> Normalize:
    """Draw a photograph and a class's map on axes, in coordinates of the image's pixels; see `overlay`.

    Args:
        axes: to draw on.
        image: RGB ``[H, W, 3]``.
        scores: of the image.
        label: the class.
        colors: see `Colors`.
        opacity: of the color at the peak.
        colormap: of matplotlib.
        peak: score at the upper end of ``"relative"`` colors, for pictures side by side; the map's own by default. A
            map that does not reach half of it gets no line and no frame.
        side: longest side, in pixels, of what is drawn of a larger image.

    Returns:
        What maps scores to colors.
    """
    extent = draw_photograph(axes, image, side)
    whole, scores = scores, smaller(scores, side)
    if colors == "relative":
        values = scores.shrunk_map(label)[0].cpu().numpy()  # few patches hold a pixel at the border: no stripes there
        # The steps of the cells are no signal.
        values = cv2.GaussianBlur(values, (0, 0), _SMOOTHING * max(values.shape))
        peak = peak or float(values.max())
        norm, alpha = _relative(values, peak, opacity)
        axes.imshow(values, cmap=colormap, norm=norm, alpha=alpha, extent=extent)
        box = None if whole.object_boxes is None else whole.find_boxes(label, max_regions=1)[0].box
        _mark(axes, values, scores.locate(label)[0], peak / 2, extent, box)
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


def draw_photograph(axes: Axes, image: Pixels, side: int = _LONGEST_SIDE) -> tuple[float, float, float, float]:
    """Draw a photograph of at most `side` pixels a side on axes; its extent, in the image's own pixels."""
    height, width = image.shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    if max(height, width) > side:
        image = cv2.resize(image, fit(width, height, side), interpolation=cv2.INTER_AREA)
    axes.imshow(image, extent=extent, interpolation="antialiased")
    axes.set_axis_off()
    return extent


def describe_peak(scores: "DenseScores", label: str) -> str:
    """The class and the height of its response (`DenseScores.shrunk_map`), in words."""
    peak = float(smaller(scores, _LONGEST_SIDE).shrunk_map(label).max())
    strength = "no" if peak < 0.005 else "weak" if peak < _FAINT else "clear" if peak < 0.3 else "strong"
    return f"{as_text(label)}: {strength} response, peak {peak:.2g}"


def _relative(values: Map, peak: float, opacity: float) -> tuple[Normalize, NDArray[np.float64]]:
    """Colors from 0 to the peak, and an opacity that is 0 up to a floor and grows with the response."""
    low = max(_FLOOR * peak, float(values.min()))
    rise = np.clip((values - low) / max(peak - low, 1e-12), 0, 1)  # [H, W]
    return Normalize(0.0, max(peak, 1e-12), clip=True), opacity * min(1.0, (peak / _FAINT) ** 0.5) * rise**0.8


def _mark(
    axes: Axes,
    values: Map,
    place: "Place",
    half: float,
    extent: tuple[float, float, float, float],
    box: Box | None,
) -> None:
    """A cross at the location; where the map falls to half of the peak, a line; a frame of the box.

    Without a box, the frame is around the region of the highest pixel.
    """
    height, width = values.shape
    across, down = extent[1] / width, extent[2] / height  # pixels of the image per value
    axes.plot(place.x * across, place.y * down, "+", color="white", markersize=16, mew=2.5)
    highest = float(values.max())
    if not float(values.min()) < half <= highest:  # no line to draw
        return
    xs, ys = (np.arange(width) + 0.5) * across, (np.arange(height) + 0.5) * down
    axes.contour(xs, ys, values, levels=[half], colors="white", linewidths=1.5)
    if box is None:
        x0, y0, x1, y1 = find_regions(values, half / highest)[0].box
        box = (round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down))
    size = box[2] - box[0], box[3] - box[1]
    axes.add_patch(Rectangle(box[:2], *size, fill=False, edgecolor="white", linestyle="--", linewidth=1.2))
