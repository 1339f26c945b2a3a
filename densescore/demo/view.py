"""What the page shows of an image: the photograph, and for each of the best classes its map and its best patches."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

from densescore.demo.limits import TooLargeError
from densescore.demo.service import Answer
from densescore.io.images import Pixels
from densescore.results.best_patches import best_patches
from densescore.results.scores import DenseScores
from densescore.results.thumbnails import jpeg, smaller

TOP, PATCHES = 8, 6
"""Classes that the page lists, and patches that it shows of each."""

_PHOTO_SIDE, _MAP_SIDE, _PATCH_SIDE = 1000, 400, 240  # longest sides, in pixels, of what goes to the browser


def view(answer: Answer) -> dict[str, Any]:
    """What the page shows, as JSON takes it.

    Returns:
        ``photo`` (a JPEG), ``width``, ``height``; ``colors`` (256 RGB bytes); ``rows`` and ``columns`` of the maps;
        ``weights`` (float32, by which a map is multiplied before it is drawn; see `DenseScores.shrunk_map`);
        ``classes``, best first: ``label``, ``score``, ``confidence``, ``best_patch`` (its score), ``peak``, ``values``
        (the raw map, float32) and ``patches`` (``photo``, ``score``, ``share``). Bytes are in base64.
    """
    pixels, scores = answer
    ranked = scores.top(TOP)
    labels = [best.label for best in ranked]
    maps = smaller(scores, _PHOTO_SIDE).response_map(labels).cpu().numpy()  # [TOP, h, w]
    small = smaller(scores, _MAP_SIDE)
    shown = small.response_map(labels).cpu().numpy().astype("<f4")  # [TOP, rows, columns]
    counts = small.coverage.numpy()
    weights = (2 * counts / (counts + counts.max())).astype("<f4")  # [rows, columns]
    classes = [
        {
            "label": best.label,
            "score": best.score,
            "confidence": best.confidence,
            "best_patch": best.best_patch,
            "peak": float(maps[i].max()),
            "values": _text(shown[i].tobytes()),
            "patches": _patches(pixels, scores, best.label),
        }
        for i, best in enumerate(ranked)
    ]
    return {
        "photo": jpeg(pixels, _PHOTO_SIDE),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "colors": _text(colormaps["turbo"](np.arange(256), bytes=True)[:, :3].tobytes()),
        "rows": shown.shape[1],
        "columns": shown.shape[2],
        "weights": _text(weights.tobytes()),
        "classes": classes,
    }


def maps_file(answer: Answer, most: int) -> bytes:
    """The raw maps of the best classes as a NumPy archive (.npz): ``maps [n, H, W]`` and ``labels [n]``.

    Args:
        answer: an image and its scores.
        most: values that all maps together may have. As many of the page's classes are given as fit.

    Raises:
        TooLargeError: not even one fits.
    """
    height, width = answer.pixels.shape[:2]
    count = min(TOP, most // (height * width))
    if count < 1:
        raise TooLargeError(f"a map of {width}×{height} values is too large; at most {most:,} values are given")
    labels = [best.label for best in answer.scores.top(count)]
    file = io.BytesIO()
    np.savez_compressed(file, maps=answer.scores.response_map(labels).cpu().numpy(), labels=np.array(labels))
    return file.getvalue()


def _patches(pixels: Pixels, scores: DenseScores, label: str) -> Sequence[dict[str, Any]]:
    height, width = pixels.shape[:2]
    found = []
    for patch in best_patches(scores, label, PATCHES):
        x0, y0, x1, y1 = np.clip(np.rint(patch.box).astype(int), 0, [width, height, width, height])
        crop = pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        found.append({"photo": jpeg(crop, _PATCH_SIDE), "score": patch.score, "share": patch.share})
    return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
