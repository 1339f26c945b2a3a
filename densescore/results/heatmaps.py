"""Heatmaps as files: a picture and the raw maps per class, and a manifest of how both were made."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from typing_extensions import Unpack

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid
from densescore.io.files import atomic_write
from densescore.io.images import Pixels
from densescore.io.names import as_text, label_file_names, text_values, to_json
from densescore.results.draw import PANEL_SIDE, PICTURE_SIDE, Style, StyleOptions, plot_map, sheet
from densescore.results.regions import Place, find_place, heatmap_of
from densescore.results.scores import DenseScores, best_patches

HEATMAPS = "heatmaps"
"""Mark of the folders that `export_heatmaps` wrote."""

SHEET = "_sheet.png"
"""File of all maps side by side. Names of classes' pictures never begin with ``_``."""

_PACKAGES = ("densescore", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")


def export_heatmaps(
    scores: DenseScores,
    image: Pixels,
    labels: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    source: str = "",
    with_sheet: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    **style: Unpack[StyleOptions],
) -> dict[str, Any]:
    """Write, per class, an overlay ``<class>.png`` and the raw maps ``<class>.npz``, and one ``manifest.json``.

    Maps in files are raw, whatever the style: ``heatmap``, and the paper's average as ``response_map``.

    Args:
        scores: scores of the image.
        image: RGB ``[H, W, 3]``, as `densescore.read_image` gives it.
        labels: the classes, or groups, to write.
        folder: a new folder; it appears complete or not at all.
        source: the image's name, for the manifest.
        with_sheet: also write ``_sheet.png``: the photograph and all the classes' heatmaps side by side.
        overwrite: replace `folder` if it is there and holds heatmaps that densescore wrote.
        inputs: files of the run, such as all its images and the model's; a folder that holds one is not replaced.
        style: see `DenseScores.plot` and `DenseScores.plot_sheet`.

    Returns:
        The manifest, as it is written: names and labels as `densescore.io.names.as_text` gives them.

    Raises:
        DensescoreError: no such class, an image of another size than was scored, or `folder` exists and may not be
            replaced.
    """
    size = (scores.pyramid.height, scores.pyramid.width)
    if image.shape[:2] != size:
        raise DensescoreError(f"image: expected the {size} pixels that were scored, got {image.shape[:2]}")
    options, selection = Style(**style), scores.select(labels)
    maps = selection.response_map()  # [C, H, W]
    heatmaps = heatmap_of(maps, scores.coverage)
    # Name the files, as among all classes
    known = list(dict.fromkeys([*scores.labels, *selection.labels]))
    stems = dict(zip(known, label_file_names(known), strict=True))
    # Describe them
    manifest = describe(scores, source)
    manifest["classes"] = [
        _describe_class(scores, label, find_place(values), stems[label])
        for label, values in zip(selection.labels, heatmaps, strict=True)
    ]
    if with_sheet:
        manifest["sheet"] = SHEET
    # Write maps and pictures
    with atomic_write(folder, overwrite=overwrite, folder=HEATMAPS, inputs=inputs) as temporary:
        for label, *arrays in zip(selection.labels, heatmaps.cpu().numpy(), maps.cpu().numpy(), strict=True):
            file = temporary / f"{stems[label]}.npz"
            np.savez_compressed(file, heatmap=arrays[0], response_map=arrays[1], label=label)
            picture = plot_map(image, scores.class_map(label, PICTURE_SIDE), options)
            file.with_suffix(".png").write_bytes(picture.encode())
        if with_sheet:
            views = [selection.class_map(label, PANEL_SIDE) for label in selection.labels]
            (temporary / SHEET).write_bytes(sheet(image, views, options).encode())
        (temporary / "manifest.json").write_text(to_json(manifest, indent=2) + "\n")
    return manifest


def describe_geometry(pyramid: Pyramid) -> dict[str, Any]:
    """The patches of an image, as plain JSON values."""
    return {
        "patch": pyramid.patch,
        "stride": pyramid.stride,
        "patches": len(pyramid),
        "levels": [
            {"scale": level.scale, "size": [level.height, level.width], "grid": [level.rows, level.cols]}
            for level in pyramid.levels
        ],
    }


def describe(scores: DenseScores, source: str) -> dict[str, Any]:
    """How a result was made, as plain JSON values: image, model, geometry, ranking, versions, timings."""
    pyramid = scores.pyramid
    description = {
        "image": {"source": source, "height": pyramid.height, "width": pyramid.width},
        "model": scores.model,
        "context": scores.context,
        "runtime": scores.runtime,
        "k": scores.k,
        "geometry": describe_geometry(pyramid),
        "top": [ranked._asdict() for ranked in scores.top(5)],
        **({"retried": True} if scores.retried else {}),
        "timings": {stage: round(seconds, 4) for stage, seconds in scores.timings.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    return dict(text_values(description))


def _describe_class(scores: DenseScores, label: str, place: Place, stem: str) -> dict[str, Any]:
    selection = scores.select(label)
    return {
        "label": as_text(label),
        "image_score": selection.image_scores()[0].item(),
        "confidence": selection.confidence()[0].item(),
        "probability": selection.probability(label),
        "overlay": f"{stem}.png",
        "maps": f"{stem}.npz",
        "location": place._asdict(),
        "regions": [region._asdict() for region in scores.find_boxes(label)],
        "best_patches": [patch._asdict() for patch in best_patches(scores, label, 5)],
    }
