"""A frame of an annotated video: the photograph, the response map over it, and a line of words below."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from densescore.io.images import Pixels
from densescore.results.overlay import Colors, describe_peak, draw_map
from densescore.results.scores import DenseScores

_SIDES = (480, 1280)  # least and most pixels of the longer side
_STRIP = 28  # pixels of the line of words
_SILENT = 0.25  # of the video's peak: a map that stays below is not drawn


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """Even height and width, in pixels, in which frames of a size are drawn; the line of words comes on top."""
    longest = max(height, width)
    factor = min(max(longest, _SIDES[0]), _SIDES[1]) / longest
    return max(2, 2 * round(height * factor / 2)), max(2, 2 * round(width * factor / 2))


def draw_frame(
    image: Pixels,
    scores: DenseScores,
    label: str,
    time: float,
    size: tuple[int, int],
    *,
    peak: float,
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str = "turbo",
) -> NDArray[np.uint8]:
    """Draw one frame.

    Args:
        image: RGB ``[H, W, 3]``, the pixels that were scored.
        scores: of the image.
        label: the class.
        time: seconds since the first frame.
        size: height and width for the photograph, as `canvas_size` gives them; a frame of another shape is fitted in.
        peak: upper end of the scale of all frames.
        colors: see `densescore.results.overlay.Colors`.
        opacity: of the color at the peak.
        colormap: of matplotlib.

    Returns:
        RGB uint8 ``[size[0] + 28, size[1], 3]``.
    """
    height, width = size
    figure = Figure(figsize=(width / 100, (height + _STRIP) / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, _STRIP / (height + _STRIP), 1, height / (height + _STRIP)))
    if colors == "relative" and float(scores.shrunk_map(label).max()) < _SILENT * peak:
        axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="antialiased")
        axes.set_axis_off()
    else:
        draw_map(axes, image, scores, label, colors=colors, opacity=opacity, colormap=colormap, peak=peak)
    axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    for x, text, side in ((8, describe_peak(scores, label), "left"), (width - 8, f"{time:.1f} s", "right")):
        place = (x / width, _STRIP / 2 / (height + _STRIP))
        figure.text(*place, text, color="white", fontsize=10, ha=side, va="center", parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
