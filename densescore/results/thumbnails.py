"""Photographs and maps small enough for a page."""

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from densescore.io.images import Pixels

if TYPE_CHECKING:
    from densescore.results.scores import DenseScores


def fit(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height shrunk, in proportion, to at most `side` pixels; never enlarged."""
    shrink = min(1.0, side / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def smaller(scores: "DenseScores", side: int) -> "DenseScores":
    """The same patches of a smaller image, so that its maps cost as little as their own pixels."""
    pyramid = scores.pyramid
    width, height = fit(pyramid.width, pyramid.height, side)
    if (width, height) == (pyramid.width, pyramid.height):
        return scores
    return replace(scores, pyramid=replace(pyramid, width=width, height=height))


def jpeg(pixels: Pixels, side: int, quality: int = 85) -> str:
    """A picture of at most so many pixels a side, as a data URL."""
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, fit(width, height, side), interpolation=cv2.INTER_AREA)
    if small.dtype != np.uint8:
        small = np.rint(small * 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
