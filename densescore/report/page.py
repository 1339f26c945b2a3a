"""Writes the page: one file with all that it shows, entry by entry, however many there are.

Whatever comes from files and labels is in blocks of JSON, in which no character can end the block; the page's script
puts it in as text. The page's policy runs this script alone, by its digest, and loads nothing from anywhere.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from matplotlib import colormaps

from densescore.io.files import atomic_write
from densescore.report.entries import Entry


def write_report(
    path: str | os.PathLike[str],
    entries: Iterable[Entry],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> int:
    """Write a report, whole or not at all; one entry is in memory at a time.

    Args:
        path: of the page.
        entries: of the images, in any order.
        about: what the page says of how it was made, as JSON values: ``model`` and more.
        overwrite: replace what is there.
        inputs: files of the run, which are not replaced.

    Returns:
        How many entries are errors.

    Raises:
        DensescoreError: `path` may not be replaced, or cannot be written.
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
    turbo = colormaps["turbo"](np.arange(256), bytes=True)[:, :3]  # [256, RGB]
    colors = base64.b64encode(turbo.tobytes()).decode()
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    head, tail = frame.split("<!-- entries -->\n")
    head = head.replace("{policy}", f"{policy}; base-uri 'none'; form-action 'none'").replace("{style}", style)
    return head + _block("about", {**about, "colors": colors}), tail.replace("{script}", script)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _block(kind: str, value: Any) -> str:
    """A value as a block of JSON: in ASCII, and without the characters that HTML reads as its own."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" class="{kind}">{text}</script>\n'
