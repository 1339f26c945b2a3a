"""Response maps as files: a picture and the raw map per class, and a manifest of how both were made."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid
from densescore.io.files import atomic_write
from densescore.io.images import Pixels
from densescore.io.names import as_text, label_file_names, text_values, to_json
from densescore.results.draw import PANEL_SIDE, PICTURE_SIDE, Colors, Style, overlay, sheet
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
    colors: Colors = "relative",
    opacity: float = 0.65,
    colormap: str = "turbo",
    with_sheet: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> dict[str, Any]:
    """Write, per class, an overlay ``<class>.png`` and the raw map ``<class>.npz``, and one ``manifest.json``.

    Args:
        scores: scores of the image.
        image: RGB ``[H, W, 3]``, as `densescore.read_image` gives it.
        labels: the classes, or groups, to write.
        folder: a new folder; it appears complete or not at all.
        source: the image's name, for the manifest.
        colors: see `densescore.results.draw.Colors`. Maps in files are raw, whatever the colors.
        opacity: opacity of the color at a map's peak, in [0, 1].
        colormap: a colormap of matplotlib.
        with_sheet: also write ``_sheet.png``: the photograph and all the classes' maps side by side, on one scale.
        overwrite: replace `folder` if it is there and holds heatmaps that densescore wrote.
        inputs: files of the run, such as all its images and the model's; a folder that holds one is not replaced.

    Returns:
        The manifest, as it is written: names and labels as `densescore.io.names.as_text` gives them.

    Raises:
        DensescoreError: no such class, an image of another size than was scored, or `folder` exists and may not be
            replaced.
    """
    size = (scores.pyramid.height, scores.pyramid.width)
    if image.shape[:2] != size:
        raise DensescoreError(f"image: expected the {size} pixels that were scored, got {image.shape[:2]}")
    style, selection = Style(colors, opacity, colormap), scores.select(labels)
    maps = dict(zip(selection.labels, selection.response_map().cpu().numpy(), strict=True))  # each [H, W]
    # Name the files, as among all classes
    known = list(dict.fromkeys([*scores.labels, *maps]))
    stems = dict(zip(known, label_file_names(known), strict=True))
    # Describe them
    manifest = describe(scores, source)
    manifest["classes"] = [_describe_class(scores, label, values, stems[label]) for label, values in maps.items()]
    if with_sheet:
        manifest["sheet"] = SHEET
    # Write maps and pictures
    with atomic_write(folder, overwrite=overwrite, folder=HEATMAPS, inputs=inputs) as temporary:
        for label, values in maps.items():
            np.savez_compressed(temporary / f"{stems[label]}.npz", map=values, label=label)
            picture = overlay(image, scores.class_map(label, PICTURE_SIDE), style)
            picture.savefig(temporary / f"{stems[label]}.png", format="png")
        if with_sheet:
            views = [selection.class_map(label, PANEL_SIDE) for label in maps]
            sheet(image, views, selection.confidence().tolist(), style).savefig(temporary / SHEET, format="png")
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


def _describe_class(scores: DenseScores, label: str, values: NDArray[np.float32], stem: str) -> dict[str, Any]:
    selection = scores.select(label)
    return {
        "label": as_text(label),
        "image_score": selection.image_scores()[0].item(),
        "confidence": selection.confidence()[0].item(),
        "overlay": f"{stem}.png",
        "map": f"{stem}.npz",
        "map_minimum": float(values.min()),
        "map_maximum": float(values.max()),
        "location": scores.locate(label)[0]._asdict(),
        "regions": [region._asdict() for region in scores.find_boxes(label)],
        "best_patches": [patch._asdict() for patch in best_patches(scores, label, 5)],
    }
