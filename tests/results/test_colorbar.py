"""The scale beside a map can be read, whatever its range and size."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure

from densescore.results.colorbar import add_colorbar

RANGES = [(0, 1), (0, 0.18), (0, 3e-9), (0.1234561, 0.1234569), (0.00174, 0.0018), (0.5, 0.5), (0.9, 0.99999)]


@pytest.mark.parametrize("size", [(11.2, 8.1), (4.2, 10.6), (11.2, 2.6)])
@pytest.mark.parametrize(("limits", "power"), [*((limits, 1.0) for limits in RANGES), ((0, 1), 0.5)])
def test_ticks_do_not_print_over_each_other(
    limits: tuple[float, float], power: float, size: tuple[float, float]
) -> None:
    norm = PowerNorm(power, *limits) if power != 1 else Normalize(*limits)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    bar = add_colorbar(figure, figure.add_subplot(), norm, "turbo", "score")
    figure.canvas.draw()
    labels = [label for label in bar.ax.get_yticklabels() if label.get_text()]
    texts = [label.get_text() for label in labels]
    assert len(texts) == len(set(texts)) >= (1 if limits[0] == limits[1] else 3)
    assert max(len(text) for text in texts) <= 9
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(below.y1 < above.y0 for below, above in pairwise(boxes))
    assert float(texts[0]) == pytest.approx(limits[0], rel=0.1)
    assert bar.ax.yaxis.get_offset_text().get_text() == ""
