"""`Match`: a place in an image that looks like an example; it shows itself, alone or on a contact sheet."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from densescore.errors import DensescoreError
from densescore.io.images import Pixels, read_image
from densescore.io.names import as_text
from densescore.io.video import split_frame_name
from densescore.report.page import ClassSummary, Entry
from densescore.report.sources import place_entry
from densescore.results.draw import Picture
from densescore.results.formats import SIDES

_COLUMNS, _PANEL = 8, 190  # of a contact sheet, in pixels
_AROUND = 0.25  # sides of the place that a sheet shows around it


@dataclass(frozen=True)
class Match:
    """A place that looks like an example.

    Attributes:
        source: path of the image, or name of the video's frame.
        box: ``x0 y0 x1 y1`` in pixels of the image, clipped to it.
        scale: λ of its patch.
        similarity: -1 to 1; 0 is that of unrelated places. It compares across queries and across indexes of one basis.
    """

    source: str
    box: tuple[float, float, float, float]
    scale: float
    similarity: float

    @property
    def exists(self) -> bool:
        """Whether the image is still where it was indexed."""
        return os.path.exists(split_frame_name(self.source)[0])

    def crop(self) -> Pixels:
        """The pixels of the place, ``[h, w, 3]``."""
        x0, y0, x1, y1 = (round(side) for side in self.box)
        return read_image(self.source)[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]

    def to_row(self) -> dict[str, Any]:
        """A row of a table, of JSON values."""
        box = dict(zip(SIDES, (round(side, 1) for side in self.box), strict=True))
        return {"image": as_text(self.source), **box, "scale": self.scale, "similarity": round(self.similarity, 4)}

    def plot(self) -> Picture:
        """The image with the place's box.

        Raises:
            DensescoreError: the image is gone or cannot be read.
        """
        pixels = read_image(self.source)
        height, width = pixels.shape[:2]
        zoom = 800 / max(height, width)
        figure = Picture(width * zoom, height * zoom + 40)
        axes = figure.add_subplot()
        axes.imshow(pixels)
        _frame(axes, self.box)
        axes.set_title(f"{os.path.basename(self.source)}, similarity {self.similarity:.2f}", parse_math=False)
        return figure

    def _repr_png_(self) -> bytes:
        return self.plot().encode()


def contact_sheet(matches: Sequence[Match]) -> Picture:
    """The places of matches, best first, each with its similarity; images that are gone are named instead."""
    if not matches:
        raise DensescoreError("a contact sheet needs at least one match")
    columns = min(len(matches), _COLUMNS)
    rows = -(-len(matches) // columns)
    figure = Picture(columns * _PANEL, rows * (_PANEL + 24))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, match in zip(panels, matches, strict=False):
        axes.set_title(f"{match.similarity:.2f}", fontsize=10)
        try:
            pixels = read_image(match.source)
        except DensescoreError:
            axes.text(0.5, 0.5, f"gone:\n{os.path.basename(match.source)}", ha="center", va="center", parse_math=False)
            continue
        x0, y0, x1, y1 = match.box
        margin = _AROUND * max(x1 - x0, y1 - y0)
        left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
        axes.imshow(pixels[top : int(y1 + margin) + 1, left : int(x1 + margin) + 1])
        _frame(axes, tuple(np.subtract(match.box, (left, top, left, top)).tolist()))
    return figure


def report_entries(matches: Sequence[Match]) -> Iterator[Entry]:
    """Entries of a report's page: each image with the place's box."""
    for match in matches:
        title, box = f"similarity {match.similarity:.2f}", (*match.box, None)
        place = ClassSummary(label="like the example", title=title, confidence=match.similarity, boxes=[box])
        yield place_entry(match.source, place)


def coco_places(matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Places as COCO results of one category; `image_id` is the rank."""
    records = []
    for rank, match in enumerate(matches):
        x0, y0, x1, y1 = (round(side, 1) for side in match.box)
        record = {"image_id": rank, "category_id": 0, "bbox": [x0, y0, round(x1 - x0, 1), round(y1 - y0, 1)]}
        records.append({**record, "score": match.similarity, "file_name": as_text(match.source)})
    return records


def _frame(axes: Axes, box: tuple[float, ...]) -> None:
    """A box, light on dark: visible on any picture."""
    for color, width in (("black", 3.5), ("white", 1.5)):
        size = box[2] - box[0], box[3] - box[1]
        frame = Rectangle((box[0], box[1]), *size, fill=False, edgecolor=color, linewidth=width, clip_on=False)
        axes.add_patch(frame)
