"""The page of a report: one HTML file with all that it shows, written entry by entry, however many there are.

Text from files and labels stands in blocks of JSON, in which no character can end the block; the page's script inserts
it as text. The page's policy runs this script alone, by its digest, and loads nothing from elsewhere.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from densescore.io.files import atomic_write
from densescore.io.names import to_json


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """A class or group in an image."""

    label: str
    title: str  # what is said of it; see `regions.title_of`
    confidence: float  # its probability, or without calibration its confidence
    answer: str | None = None  # yes, no or unsure
    boxes: Sequence[tuple[float, float, float, float, float | None]] = ()  # x0 y0 x1 y1, probability; best first
    place: tuple[float, float] | None = None  # x y in image pixels, if known
    map_url: str = ""  # the heatmap's colors, as a picture; none of an absent class


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image of a report: its picture and its classes, best first; or an error."""

    name: str  # its path; any text
    width: int = 0
    height: int = 0
    photo_url: str = field(default="", repr=False)
    classes: Sequence[ClassSummary] = ()
    error: str | None = None

    def facts(self) -> dict[str, Any]:
        """All but the pictures, as JSON values; numbers with the digits that the page shows."""
        if self.error is not None:
            return {"name": self.name, "error": self.error}
        classes = [
            {
                "label": each.label,
                "title": each.title,
                "confidence": _short(each.confidence),
                "answer": each.answer,
                "boxes": [[*(round(side, 1) for side in box[:4]), box[4] and _short(box[4])] for box in each.boxes],
                "place": each.place and [round(side, 1) for side in each.place],
            }
            for each in self.classes
        ]
        return {"name": self.name, "width": self.width, "height": self.height, "classes": classes}

    def pictures(self) -> dict[str, Any]:
        """The photograph, and the map of each class, in order."""
        return {"photo": self.photo_url, "maps": [each.map_url for each in self.classes]}


def write_report(
    path: str | os.PathLike[str],
    entries: Iterable[Entry],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> int:
    """Write a report, whole or not at all, with one entry in memory at a time; returns the number of failed entries.

    `about` is JSON, with the page's line of text; files of the run, `inputs`, are never replaced.
    """
    failed = 0
    with (
        atomic_write(path, overwrite=overwrite, inputs=inputs) as temporary,
        temporary.open("w", encoding="utf-8") as page,
    ):
        head, tail = _frame(about)
        page.write(head)
        for entry in entries:
            failed += entry.error is not None
            page.write(_block("facts", entry.facts()))
            if entry.error is None:
                page.write(_block("pictures", entry.pictures()))
        page.write(tail)
    return failed


def _frame(about: Mapping[str, Any]) -> tuple[str, str]:
    """The page before and after its entries."""
    static = files("densescore.report") / "static"
    frame, style, script = ((static / f"report.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    head, tail = frame.split("<!-- entries -->\n")
    head = head.replace("{policy}", f"{policy}; base-uri 'none'; form-action 'none'").replace("{style}", style)
    return head + _block("about", about), tail.replace("{script}", script)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _block(kind: str, value: Any) -> str:
    """A value as a block of JSON, in ASCII, with the special characters of HTML escaped."""
    text = to_json(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" class="{kind}">{text}</script>\n'


def _short(value: float) -> float:
    return float(f"{value:.4g}")
