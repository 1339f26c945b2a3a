"""Score every patch of an image at every scale in one fully convolutional pass.

An implementation of Oquab, Bottou, Laptev, Sivic, "Learning and Transferring Mid-Level Image Representations using
Convolutional Neural Networks" (CVPR 2014).

Example:
    >>> import densescore, skimage
    >>> densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).top(1)[0].label
    'Egyptian cat'
"""

from importlib.metadata import version

from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES, Level, Pyramid
from densescore.io.images import read_image
from densescore.results.regions import Region
from densescore.results.scores import DenseScores, Ranked
from densescore.scoring.classify import classify
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import Scored, score_many

__version__ = version("densescore")

__all__ = [
    "PAPER_SCALES",
    "DenseScorer",
    "DenseScores",
    "DensescoreError",
    "Level",
    "Pyramid",
    "Ranked",
    "Region",
    "Scored",
    "__version__",
    "classify",
    "read_image",
    "score_many",
]
