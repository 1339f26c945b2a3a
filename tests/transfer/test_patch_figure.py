"""The picture of an image's labeled patches: what stands in it."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.text import Text

from densescore.data.boxed_set import BoxedImage
from densescore.transfer.patch_figure import draw_patch_labels
from densescore.transfer.patch_labels import label_patches


def test_each_object_has_a_tag_and_each_patch_left_out_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((100, 140, 3), 90, np.uint8)
    boxes = np.array([[10, 10, 60, 60], [100, 5, 104, 9]], np.float32)  # the second is too small for any patch
    image = BoxedImage(
        name="photo",
        path=tmp_path / "photo.png",
        height=100,
        width=140,
        truth=np.ones(2, np.int8),
        boxes=boxes,
        classes=np.array([0, 1]),
        difficult=np.zeros(2, bool),
    )
    patches = np.array([[5, 5, 65, 65], [40, 40, 100, 100], [70, 0, 140, 70], [80, 40, 140, 100]], np.float32)
    labels = label_patches(patches, boxes, image.classes, 2)
    figures: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def keep_and_save(self: matplotlib.figure.Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep_and_save)
    draw_patch_labels(pixels, patches, labels, image, ("cat", "bird"), tmp_path / "labels.png")
    texts = {text.get_text().replace("\n", " "): text for text in figures[0].findobj(Text)}
    assert {"cat", "bird: no positive patch", "cat: 1", "background: 1", "left out: 2"} <= set(texts)
    assert "cat fills 11\xa0% of it, under 20\xa0%; holds 16\xa0% of cat, under 60\xa0%" in texts
    assert "bird fills under 1\xa0% of it, under 20\xa0%" in texts
    for name in ("cat", "bird: no positive patch"):  # white letters on a color that lets the photograph through
        background = texts[name].get_bbox_patch()
        assert texts[name].get_color() == "white"
        assert max(background.get_facecolor()[:3]) < 0.95
        assert background.get_alpha() < 0.8
