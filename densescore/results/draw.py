"""Response maps drawn over their photograph: one map, a sheet of several, a frame of a video."""

import base64
import io
import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.images import Pixels
from densescore.io.names import as_text
from densescore.results.fonts import complete_fonts
from densescore.results.regions import FAINT, Box, ClassMap, Place, find_regions, thumbnail_size

Colors = Literal["relative", "absolute", "rescaled"]
"""``"relative"``: from nothing, transparent, to the map's own peak. ``"absolute"``: one scale of scores, 0 to 1, for
every picture. ``"rescaled"``: from the map's minimum to its maximum."""

Map: TypeAlias = NDArray[Any]

PICTURE_SIDE, PANEL_SIDE = 1000, 640
"""Longest sides, in pixels, of the maps in a picture and in a sheet."""

_FLOOR = 0.4  # of the peak: below, the photograph is bare
_SMOOTHING = 0.012  # standard deviation, of the longer side

_COLOR_BAR = "mean score of the patches over a pixel"
_MAX_DIGITS = 9  # of a float32

# A sheet, in pixels
_SHEET_WIDTH, _SHEET_HEIGHT = 1800, 1000  # of all panels together, at most
_TITLE, _GAP, _BAR = 42, 12, 110  # height of a panel's title, space between panels, width of the color bar
_CHARACTER = 7.5  # width of a title's character

# A frame of a video
_MIN_SIDE, _MAX_SIDE = 480, 1280  # longer side, in pixels
_STRIP = 28  # height of the line of text, in pixels
_SILENT = 0.25  # of the video's peak: maps below are not drawn


@dataclass(frozen=True)
class Style:
    """How maps are drawn: `Colors`, opacity at the peak in [0, 1], and a colormap of matplotlib; checked."""

    colors: Colors = "relative"
    opacity: float = 0.65
    colormap: str | Colormap = "turbo"

    def __post_init__(self) -> None:
        if self.colors not in get_args(Colors):
            raise DensescoreError(f"colors must be one of {', '.join(get_args(Colors))}, got {self.colors!r}")
        if not 0 <= self.opacity <= 1:
            raise DensescoreError(f"opacity must lie in [0, 1], got {self.opacity}")
        if isinstance(self.colormap, str) and self.colormap not in matplotlib.colormaps:
            hint = "viridis, magma and turbo are some"
            raise DensescoreError(f"colormap: matplotlib has none named {self.colormap!r}; {hint}")

    def check_one_scale(self) -> None:
        """Raise `DensescoreError` for colors that give each map its own scale: a sheet has one."""
        if self.colors == "rescaled":
            raise DensescoreError("a sheet has one scale: colors must be relative or absolute, got 'rescaled'")


class Picture(Figure):
    """A figure apart from pyplot, in pixels: notebooks show it, and it is freed with its last reference."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
        FigureCanvasAgg(self)

    def encode(self, form: str = "png") -> bytes:
        """The bytes of the picture's file, in a format of matplotlib."""
        file = io.BytesIO()
        with complete_fonts(self):
            self.savefig(file, format=form)
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.encode()

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        """Write the picture, whole or not at all, in the format of the suffix; `inputs` are never replaced."""
        form, known = Path(path).suffix.lower().removeprefix("."), self.canvas.get_supported_filetypes()
        if form not in known:
            raise DensescoreError(f"{path}: a picture's name ends in one of {', '.join(f'.{name}' for name in known)}")
        with atomic_write(path, overwrite=overwrite, inputs=inputs) as temporary, complete_fonts(self):
            self.savefig(temporary, format=form)


# One map


def overlay(image: Pixels, view: ClassMap, style: Style) -> Picture:
    """A class's map over its photograph ``[H, W, 3]``, with title and color bar; see `DenseScores.plot`."""
    height, width = image.shape[:2]
    zoom = PICTURE_SIDE / max(height, width)
    figure = Picture(max(width * zoom, 300) + 120, max(height * zoom, 200) + 60)
    axes = figure.add_subplot()
    norm = draw_map(axes, image, view, style)
    axes.set_title(view.title, parse_math=False)
    text = _COLOR_BAR if height * zoom > 350 else "mean score"  # as long as the bar of a panorama
    add_colorbar(figure, [axes], norm, style.colormap, text)
    return figure


def draw_map(axes: Axes, image: Pixels, view: ClassMap, style: Style, peak: float | None = None) -> Normalize:
    """Draw a photograph ``[H, W, 3]`` and a class's map, in pixels of the image; returns the scores' normalization.

    `peak` is the upper end of relative colors, for pictures side by side. Maps below half of it get no line and frame.
    """
    extent = _draw_photograph(axes, image, view.mean.shape)
    if style.colors == "relative":
        # The mean map has stripes at the border, where few patches hold a pixel; steps between cells are noise.
        values = cv2.GaussianBlur(view.shrunk, (0, 0), _SMOOTHING * max(view.shrunk.shape))
        peak = peak or float(values.max())
        norm, alpha = _fade(values, peak, style.opacity)
        axes.imshow(values, cmap=style.colormap, norm=norm, alpha=alpha, extent=extent)
        _mark(axes, values, view.place, peak / 2, extent, view.box)
        return norm
    values = view.mean
    if style.colors == "absolute":
        # A mean over all patches of all scales is small even on the object: the square root spreads small values.
        norm = PowerNorm(0.5, 0.0, 1.0, clip=True)
    else:
        norm = Normalize(float(values.min()), float(values.max()), clip=True)
    alpha = style.opacity * (0.12 + 0.88 * np.asarray(norm(values)))
    axes.imshow(values, cmap=style.colormap, norm=norm, alpha=alpha, extent=extent)
    return norm


def _draw_photograph(axes: Axes, image: Pixels, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Draw a photograph at the height and width of its map; returns its extent, in pixels of the image."""
    height, width = image.shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    if shape != (height, width):
        image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
    axes.imshow(image, extent=extent, interpolation="antialiased")
    axes.set_axis_off()
    return extent


def _fade(values: Map, peak: float, opacity: float) -> tuple[Normalize, NDArray[Any]]:
    """Colors from 0 to the peak, and opacities ``[H, W]`` that are 0 up to a floor and grow with the response."""
    low = max(_FLOOR * peak, float(values.min()))
    rise = np.clip((values - low) / max(peak - low, 1e-12), 0, 1)  # [H, W]
    return Normalize(0.0, max(peak, 1e-12), clip=True), opacity * min(1.0, (peak / FAINT) ** 0.5) * rise**0.8


def _mark(
    axes: Axes, values: Map, place: Place, half: float, extent: tuple[float, float, float, float], box: Box | None
) -> None:
    """A cross at the place, a line at half of the peak, and a frame: the box, or that of the highest pixel's region."""
    height, width = values.shape
    across, down = extent[1] / width, extent[2] / height  # pixels of the image per value
    axes.plot(place.x * across, place.y * down, "+", color="white", markersize=16, mew=2.5)
    highest = float(values.max())
    if min(values.shape) < 2 or not float(values.min()) < half <= highest:  # no line to draw
        return
    xs, ys = (np.arange(width) + 0.5) * across, (np.arange(height) + 0.5) * down
    axes.contour(xs, ys, values, levels=[half], colors="white", linewidths=1.5)
    if box is None:
        x0, y0, x1, y1 = find_regions(values, half / highest)[0].box
        box = (round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down))
    size = box[2] - box[0], box[3] - box[1]
    axes.add_patch(Rectangle(box[:2], *size, fill=False, edgecolor="white", linestyle="--", linewidth=1.2))


def add_colorbar(
    figure: Figure, axes: Sequence[Axes], norm: Normalize, colormap: str | Colormap, label: str = _COLOR_BAR
) -> Colorbar:
    """Add the scale of maps to the right of their axes.

    matplotlib's own ticks print over each other on short bars and nonlinear scales, and show narrow ranges as offsets.
    """
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    ticks: tuple[float, ...] = (low, 0.1, 0.5, high) if isinstance(norm, PowerNorm) else (low, (low + high) / 2, high)
    if not low < ticks[1] < high:  # a map of one value, in float32
        ticks = (low,)
    fraction, pad = (0.046, 0.02) if len(axes) == 1 else (0.02, 0.01)
    bar = figure.colorbar(ScalarMappable(norm, colormap), ax=axes, fraction=fraction, pad=pad, label=label)
    bar.set_ticks(ticks, labels=_short_numbers(ticks))
    bar.minorticks_off()
    return bar


def _short_numbers(values: Sequence[float]) -> list[str]:
    """Numbers with the fewest significant digits, two or more, that tell them apart.

    >>> _short_numbers([0, 0.0912, 0.18239]), _short_numbers([0.1234561, 0.1234565, 0.1234569])
    (['0', '0.091', '0.18'], ['0.1234561', '0.1234565', '0.1234569'])
    """
    for digits in range(2, _MAX_DIGITS + 1):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(values):
            break
    return texts


# A sheet


def sheet(image: Pixels, views: Sequence[ClassMap], confidences: Sequence[float], style: Style) -> Picture:
    """A photograph ``[H, W, 3]`` and its classes' maps, one or more, on one scale; see `DenseScores.plot_sheet`."""
    style.check_one_scale()
    peak = max(view.peak for view in views)
    height, width = image.shape[:2]
    # Lay out the panels
    columns, panel = arrange(1 + len(views), width / height)
    rows = -(-(1 + len(views)) // columns)
    figure = Picture(columns * panel + _BAR, rows * (panel * height / width + _TITLE))
    figure.set_layout_engine("constrained", w_pad=_GAP / 200, h_pad=_GAP / 200, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Draw the photograph, then the maps
    _draw_photograph(axes[0], image, views[0].mean.shape)
    axes[0].set_title("the photograph", fontsize=10)
    characters = max(12, int(panel / _CHARACTER))
    for place, view, confidence in zip(axes[1:], views, confidences, strict=False):
        norm = draw_map(place, image, view, style, peak)
        name = textwrap.shorten(as_text(view.label), characters, placeholder="…")
        place.set_title(f"{name}\nconfidence {confidence:.2g}", fontsize=10, parse_math=False)
    for place in axes[1 + len(views) :]:
        place.set_axis_off()
    add_colorbar(figure, list(axes), norm, style.colormap)
    return figure


def arrange(count: int, aspect: float) -> tuple[int, float]:
    """Columns and width in pixels of panels of one aspect ratio (width over height), as large as they can be.

    >>> arrange(7, 1.5)
    (4, 450.0)
    """

    def panel(columns: int) -> float:
        rows = math.ceil(count / columns)
        return max(1.0, min(_SHEET_WIDTH / columns, (_SHEET_HEIGHT / rows - _TITLE) * aspect))

    def filled(columns: int) -> float:  # of arrangements alike in size, the one with the fewest empty panels
        return panel(columns) ** 2 * count / (math.ceil(count / columns) * columns)

    columns = max(range(1, count + 1), key=filled)
    return columns, panel(columns)


# A frame of a video


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """Even height and width, in pixels, in which frames are drawn, above the line of text."""
    longest = max(height, width)
    factor = min(max(longest, _MIN_SIDE), _MAX_SIDE) / longest
    return max(2, 2 * round(height * factor / 2)), max(2, 2 * round(width * factor / 2))


def draw_frame(
    image: Pixels, view: ClassMap, time: float, size: tuple[int, int], style: Style, peak: float
) -> NDArray[np.uint8]:
    """One frame at `time` seconds, fitted into a canvas of `size`: RGB uint8 ``[size[0] + 28, size[1], 3]``.

    `peak` is the upper end of the scale of all frames.
    """
    height, width = size
    figure = Figure(figsize=(width / 100, (height + _STRIP) / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, _STRIP / (height + _STRIP), 1, height / (height + _STRIP)))
    if style.colors == "relative" and view.peak < _SILENT * peak:
        _draw_photograph(axes, image, view.mean.shape)
    else:
        draw_map(axes, image, view, style, peak)
    axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    for x, text, side in ((8, view.title, "left"), (width - 8, f"{time:.1f} s", "right")):
        place = (x / width, _STRIP / 2 / (height + _STRIP))
        figure.text(*place, text, color="white", fontsize=10, ha=side, va="center", parse_math=False)
    with complete_fonts(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def jpeg(pixels: Pixels, side: int, quality: int = 85) -> str:
    """A picture ``[H, W, 3]`` of at most `side` pixels a side, as a data URL."""
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, thumbnail_size(width, height, side), interpolation=cv2.INTER_AREA)
    if small.dtype != np.uint8:
        small = np.rint(small * 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
