"""Response maps as files: an overlay to look at, the raw map, and a manifest that says how both were made."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid
from densescore.io.files import atomic_write
from densescore.io.images import Pixels
from densescore.io.names import as_text, label_file_names, text_values
from densescore.results.scores import DenseScores

_PACKAGES = ("densescore", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")
HEATMAPS = "heatmaps"
"""What the mark of a folder says that `export_heatmaps` wrote."""

_LONGEST_SIDE = 1000  # pixels of an overlay's picture


def export_heatmaps(
    scores: DenseScores,
    image: Pixels,
    labels: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    source: str = "",
    value_range: tuple[float, float] | None = (0.0, 1.0),
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> dict[str, Any]:
    """Write, per class, an overlay ``<class>.png`` and the raw map ``<class>.npz``, and one ``manifest.json``.

    Args:
        scores: of the image.
        image: RGB ``[H, W, 3]``, as `densescore.read_image` gives it.
        labels: the classes to write.
        folder: a new folder; it appears complete or not at all.
        source: the image's name, for the manifest.
        value_range: scores at the two ends of the colors, the same for every image unless None, which takes each
            map's own minimum and maximum.
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
    labels = list(dict.fromkeys(labels))
    maps = scores.response_map(labels).cpu().numpy()  # [len(labels), H, W]
    by_column = label_file_names(scores.labels)
    names = [by_column[scores.index(label)] for label in labels]
    manifest = describe(scores, source)
    manifest["classes"] = [
        _describe_class(scores, label, values, name) for label, values, name in zip(labels, maps, names, strict=True)
    ]
    with atomic_write(folder, overwrite=overwrite, folder=HEATMAPS, inputs=inputs) as temporary:
        for label, values, name in zip(labels, maps, names, strict=True):
            np.savez_compressed(temporary / f"{name}.npz", map=values, label=label)
            draw_overlay(image, values, as_text(label), temporary / f"{name}.png", value_range=value_range)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def draw_overlay(
    image: Pixels,
    values: NDArray[np.float32],
    label: str,
    path: str | os.PathLike[str],
    *,
    value_range: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """Draw a response map over its image, with a color bar that says the range, to a PNG file.

    Args:
        image: RGB ``[H, W, 3]``.
        values: the map, ``[H, W]``.
        label: the class, for the title.
        path: of the PNG.
        value_range: see `export_heatmaps`.
    """
    low, high = value_range or (float(values.min()), float(values.max()))
    height, width = values.shape
    inches = _LONGEST_SIDE / 100 / max(height, width)
    figure = Figure(figsize=(max(width * inches, 3) + 1.2, max(height * inches, 2) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(image, extent=(0, width, height, 0))
    # A mean over all patches of all scales is small even on the object. The square root spreads small values over the
    # colors and keeps one scale for all images, which stretching each to its own range would not.
    colors = PowerNorm(0.5, low, high, clip=True)
    opacity = 0.1 + 0.7 * np.asarray(colors(values))  # low scores let the photograph through
    axes.imshow(values, cmap="turbo", norm=colors, alpha=opacity, extent=(0, width, height, 0))
    axes.set_title(f"{label}: peak {values.max():.3g}")
    axes.set_axis_off()
    figure.colorbar(
        ScalarMappable(colors, "turbo"),
        ax=axes,
        fraction=0.046,
        pad=0.02,
        label="mean score of the patches over a pixel",
    )
    figure.savefig(path, dpi=100)


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
    column = scores.index(label)
    best = scores.patch_scores[:, column].topk(min(5, len(scores.patch_scores)))
    return {
        "label": as_text(label),
        "image_score": scores.image_scores()[column].item(),
        "overlay": f"{name}.png",
        "map": f"{name}.npz",
        "map_minimum": float(values.min()),
        "map_maximum": float(values.max()),
        "regions": [{"box": region.box, "peak": region.peak} for region in scores.boxes_from_map(label)],
        "best_patches": [
            {"box": [round(side, 2) for side in scores.boxes[index].tolist()], "score": score}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ],
    }
