"""Response maps as files: an overlay to look at, the raw map, and a manifest that says how both were made."""

import json
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
from densescore.io.names import as_text, label_file_names, text_values
from densescore.results.best_patches import best_patches
from densescore.results.overlay import Colors, draw_overlay
from densescore.results.scores import DenseScores
from densescore.results.sheet import sheet

_PACKAGES = ("densescore", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")
HEATMAPS = "heatmaps"
"""What the mark of a folder says that `export_heatmaps` wrote."""

SHEET = "_sheet.png"
"""The file of all maps side by side: a name that no class's picture has, since theirs do not begin with ``_``."""


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
        scores: of the image.
        image: RGB ``[H, W, 3]``, as `densescore.read_image` gives it.
        labels: the classes, or groups, to write.
        folder: a new folder; it appears complete or not at all.
        source: the image's name, for the manifest.
        colors: of the pictures; see `densescore.results.overlay.Colors`. Maps in files are raw, whatever the colors.
        opacity: of the color at a map's peak, in [0, 1].
        colormap: of matplotlib.
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
    chosen = scores.select(labels)
    labels = chosen.labels
    maps = chosen.response_map().cpu().numpy()  # [len(labels), H, W]
    known = list(dict.fromkeys([*scores.labels, *labels]))
    file_names = dict(zip(known, label_file_names(known), strict=True))
    names = [file_names[label] for label in labels]
    manifest = describe(scores, source)
    manifest["classes"] = [
        _describe_class(scores, label, values, name) for label, values, name in zip(labels, maps, names, strict=True)
    ]
    if with_sheet:
        manifest["sheet"] = SHEET
    with atomic_write(folder, overwrite=overwrite, folder=HEATMAPS, inputs=inputs) as temporary:
        for label, values, name in zip(labels, maps, names, strict=True):
            np.savez_compressed(temporary / f"{name}.npz", map=values, label=label)
            picture = temporary / f"{name}.png"
            draw_overlay(image, scores, label, picture, colors=colors, opacity=opacity, colormap=colormap)
        if with_sheet:
            sheet(image, scores, labels, colors=colors, opacity=opacity, colormap=colormap).save(temporary / SHEET)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def describe_geometry(pyramid: Pyramid) -> dict[str, Any]:
    """Which patches there are, as plain JSON values."""
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
    """What a result rests on, as plain JSON values: image, model, geometry, ranking, versions, timings."""
    pyramid = scores.pyramid
    described = {
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
    return dict(text_values(described))


def _describe_class(scores: DenseScores, label: str, values: NDArray[np.float32], name: str) -> dict[str, Any]:
    chosen = scores.select(label)
    return {
        "label": as_text(label),
        "image_score": chosen.image_scores()[0].item(),
        "confidence": chosen.confidence()[0].item(),
        "overlay": f"{name}.png",
        "map": f"{name}.npz",
        "map_minimum": float(values.min()),
        "map_maximum": float(values.max()),
        "location": scores.locate(label)[0]._asdict(),
        "regions": [region._asdict() for region in scores.find_boxes(label)],
        "best_patches": [patch._asdict() for patch in best_patches(scores, label, 5)],
    }
