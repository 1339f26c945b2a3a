"""Heatmaps drawn over their photograph: pixels, one picture, a sheet of several, a frame of a video."""

import base64
import io
import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import contourpy
import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from typing_extensions import TypedDict

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.images import Pixels
from densescore.results.fonts import complete_fonts
from densescore.results.regions import MIN_CONFIDENCE, ClassMap, Region, confident, thumbnail_size

Colors = Literal["relative", "absolute", "rescaled"]
"""``"relative"``: from nothing, transparent, to the map's own peak. ``"absolute"``: one scale of scores, 0 to 1, for
every picture. ``"rescaled"``: from the map's minimum to its maximum."""

Painted: TypeAlias = NDArray[np.uint8]

PICTURE_SIDE, PANEL_SIDE = 1000, 640
"""Longest sides, in pixels, of a picture and of a sheet's panel."""

_FLOOR = 0.4  # of the peak: below, the photograph is bare

# A sheet, in pixels
_SHEET_WIDTH, _SHEET_HEIGHT = 1800, 1000  # of all panels together, at most
_TITLE, _GAP, _BAR = 42, 12, 60  # height of a panel's title, space between panels, width of a color bar
_CHARACTER = 0.95  # width of a title's character, in points of its font: dots of 1/100 inch
_MAX_TITLE = 160  # characters

# A frame of a video
_MIN_SIDE, _MAX_SIDE = 480, 1280  # longer side, in pixels
_STRIP = 28  # height of the line of text, in pixels


class StyleOptions(TypedDict, total=False):
    """Keyword arguments of `Style`."""

    colors: Colors
    opacity: float
    colormap: str | Colormap
    colorbar: bool
    shared_scale: bool
    min_confidence: float


@dataclass(frozen=True)
class Style:
    """How heatmaps are drawn; checked."""

    colors: Colors = "relative"
    opacity: float = 0.65  # at the peak, in [0, 1]
    colormap: str | Colormap = "turbo"  # matplotlib's
    colorbar: bool = True
    shared_scale: bool = False  # of a sheet's panels, as the paper's
    min_confidence: float = MIN_CONFIDENCE  # probability from which a box is drawn

    def __post_init__(self) -> None:
        if self.colors not in get_args(Colors):
            raise DensescoreError(f"colors must be one of {', '.join(get_args(Colors))}, got {self.colors!r}")
        for name, share in (("opacity", self.opacity), ("min_confidence", self.min_confidence)):
            if not 0 <= share <= 1:
                raise DensescoreError(f"{name} must lie in [0, 1], got {share}")
        if isinstance(self.colormap, str) and self.colormap not in matplotlib.colormaps:
            hint = "viridis, magma and turbo are some"
            raise DensescoreError(f"colormap: matplotlib has none named {self.colormap!r}; {hint}")
        if self.shared_scale and self.colors == "rescaled":
            raise DensescoreError("shared_scale: 'rescaled' colors give each map its own scale")

    def scale(self, view: ClassMap, peak: float | None = None) -> Normalize:
        """The scores' normalization; `peak` is the upper end of relative colors, by default the map's own."""
        if self.colors == "absolute":
            # A mean over all patches of all scales is small even on the object: the square root spreads small values.
            return PowerNorm(0.5, 0.0, 1.0, clip=True)
        low = float(view.heatmap.min()) if self.colors == "rescaled" else 0.0
        return Normalize(low, max(peak or view.place.peak, 1e-12), clip=True)


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


# Pixels


def heat(view: ClassMap, style: Style, peak: float | None = None) -> Painted:
    """A heatmap's colors and opacities: RGBA ``[h, w, 4]``; transparent where, or if, the class is absent."""
    relative = np.asarray(style.scale(view, peak)(view.heatmap))
    if style.colors == "relative":
        low = max(_FLOOR, float(relative.min()))
        alpha = (np.clip(relative - low, 0, 1) / max(1 - low, 1e-12)) ** 0.8
    else:
        alpha = 0.12 + 0.88 * relative
    colormap = matplotlib.colormaps.get_cmap(style.colormap)
    colors = np.asarray(colormap(relative, bytes=True))
    colors[..., 3] = np.rint(255 * style.opacity * alpha * view.is_present)
    return colors


def paint(
    image: Pixels, view: ClassMap, style: Style, size: tuple[int, int], *, peak: float | None = None, marks: bool = True
) -> Painted:
    """The photograph with a class's heatmap, at a width and height: RGB ``[h, w, 3]``; an absent class adds nothing.

    Marks are a cross at the peak, a line at half of the scale, and boxes; maps below that line have none.
    """
    canvas = _fit(image, size)
    if not view.is_present:
        return canvas
    colors = cv2.resize(heat(view, style, peak), size, interpolation=cv2.INTER_LINEAR)
    alpha = colors[..., 3:].astype(np.float32) / 255
    canvas = np.rint(canvas + alpha * (colors[..., :3].astype(np.float32) - canvas)).astype(np.uint8)
    half = (peak or view.place.peak) / 2
    if marks and view.place.peak >= half:
        _mark(canvas, view, half, confident(view.boxes, style.min_confidence))
    return canvas


def _fit(image: Pixels, size: tuple[int, int]) -> Painted:
    """The photograph at a width and height: uint8 ``[h, w, 3]``."""
    is_smaller = size[0] < image.shape[1]
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
    return cast(Painted, canvas if canvas.dtype == np.uint8 else np.rint(canvas * 255).astype(np.uint8))


def _mark(canvas: Painted, view: ClassMap, half: float, boxes: Sequence[Region]) -> None:
    """Draw the line, boxes and the cross, white in a dark outline."""
    zoom = np.array([canvas.shape[1] / view.heatmap.shape[1], canvas.shape[0] / view.heatmap.shape[0]])
    thickness = max(1, round(max(canvas.shape) / 500))
    strokes: list[tuple[NDArray[np.int32], bool]] = []

    def stroke(points: Any, closed: bool = False) -> None:
        fixed = np.rint(np.asarray(points) * zoom * 16).astype(np.int32)  # in 1/16 pixels of the canvas
        strokes.append((fixed, closed))

    if min(view.heatmap.shape) > 1:
        for line in contourpy.contour_generator(z=view.heatmap).lines(half):
            stroke(np.asarray(line) + 0.5)
    for x0, y0, x1, y1 in (region.box for region in boxes):
        stroke([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], closed=True)
    x, y, arm = view.place.x, view.place.y, 6 * thickness / zoom
    stroke([(x - arm[0], y), (x + arm[0], y)])
    stroke([(x, y - arm[1]), (x, y + arm[1])])
    for color, width in (((0, 0, 0), thickness + 2), ((255, 255, 255), thickness)):
        for points, closed in strokes:
            cv2.polylines(canvas, [points], closed, color, width, cv2.LINE_AA, 4)


# One picture


def plot_map(image: Pixels, view: ClassMap, style: Style) -> Picture:
    """A class's heatmap over its photograph ``[H, W, 3]``, with title and color bar; see `DenseScores.plot`."""
    height, width = image.shape[:2]
    zoom = PICTURE_SIDE / max(height, width)
    figure = Picture(max(width * zoom, 300) + 120, max(height * zoom, 200) + 60)
    axes = figure.add_subplot()
    draw_map(axes, image, view, style)
    axes.set_title(_wrap(view.title, width * zoom, 12), parse_math=False)
    if style.colorbar and view.is_present:
        add_colorbar(figure, [axes], style.scale(view), style)
    return figure


def draw_map(axes: Axes, image: Pixels, view: ClassMap, style: Style, peak: float | None = None) -> None:
    """Draw a photograph ``[H, W, 3]`` and a class's heatmap, in pixels of the image."""
    zoom = PICTURE_SIDE / max(image.shape)
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    _show(axes, paint(image, view, style, size, peak=peak), image)


def _show(axes: Axes, pixels: Painted, image: Pixels) -> None:
    """Show painted pixels, in pixels of the image."""
    axes.imshow(pixels, extent=(0.0, float(image.shape[1]), float(image.shape[0]), 0.0), interpolation="antialiased")
    axes.set_axis_off()


def _wrap(title: str, pixels: float, font: float) -> str:
    """A title in lines that fit a width."""
    return textwrap.fill(title[:_MAX_TITLE], max(12, int(pixels / (_CHARACTER * font))))


def add_colorbar(figure: Figure, axes: Sequence[Axes], norm: Normalize, style: Style) -> Colorbar:
    """Add the scale of heatmaps to the right of their axes, with the one number at its upper end."""
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    place: dict[str, Any] = {"ax": axes, "fraction": 0.02, "pad": 0.01}
    if len(axes) == 1:
        place = {"cax": axes[0].inset_axes((1.02, 0, 0.03, 1))}
    bar = figure.colorbar(ScalarMappable(norm, style.colormap), label="heatmap", **place)
    bar.set_ticks([high], labels=[f"{high:.2g}"]) if low < high else bar.set_ticks([])
    bar.minorticks_off()
    return bar


# A sheet


def sheet(image: Pixels, views: Sequence[ClassMap], style: Style) -> Picture:
    """A photograph ``[H, W, 3]`` and its classes' heatmaps, one or more; see `DenseScores.plot_sheet`."""
    peak = max(view.place.peak for view in views) if style.shared_scale else None
    height, width = image.shape[:2]
    # Lay out the panels
    columns, panel = arrange(1 + len(views), width / height)
    rows, bar = -(-(1 + len(views)) // columns), _BAR * style.colorbar
    figure = Picture(columns * (panel + bar), rows * (panel * height / width + _TITLE))
    figure.set_layout_engine("constrained", w_pad=_GAP / 200, h_pad=_GAP / 200, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Draw the photograph, then the maps
    size = max(1, round(panel)), max(1, round(panel * height / width))
    photograph = _fit(image, size)
    _show(axes[0], photograph, image)
    axes[0].set_title("the photograph", fontsize=10)
    gray = np.repeat(128 + photograph.mean(2, keepdims=True).astype(np.uint8) // 2, 3, 2)
    for place, view in zip(axes[1:], views, strict=False):
        _show(place, paint(image, view, style, size, peak=peak) if view.is_present else gray, image)
        place.set_title(_wrap(view.title, panel, 10), fontsize=10, parse_math=False)
        if style.colorbar and view.is_present and not style.shared_scale:
            add_colorbar(figure, [place], style.scale(view), style).set_label("")
    for place in axes[1 + len(views) :]:
        place.set_axis_off()
    if style.colorbar and style.shared_scale:
        add_colorbar(figure, list(axes), style.scale(views[0], peak), style)
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
    _show(axes, paint(image, view, style, (width, height), peak=peak), image)
    for x, text, side in ((8, view.title, "left"), (width - 8, f"{time:.1f} s", "right")):
        place = (x / width, _STRIP / 2 / (height + _STRIP))
        figure.text(*place, text, color="white", fontsize=10, ha=side, va="center", parse_math=False)
    with complete_fonts(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def data_url(pixels: Pixels, side: int, quality: int = 85) -> str:
    """A picture of at most `side` pixels a side, as a data URL: ``[H, W, 3]`` as JPEG, ``[H, W, 4]`` as WebP."""
    small = _fit(pixels, thumbnail_size(pixels.shape[1], pixels.shape[0], side))
    opaque = small.shape[2] == 3
    kind, option = ("jpeg", cv2.IMWRITE_JPEG_QUALITY) if opaque else ("webp", cv2.IMWRITE_WEBP_QUALITY)
    order = cv2.COLOR_RGB2BGR if opaque else cv2.COLOR_RGBA2BGRA
    encoded = cv2.imencode(f".{kind}", cv2.cvtColor(small, order), [option, quality])[1]
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
