"""Score every patch of an image at every scale in one fully convolutional pass.

An implementation of Oquab, Bottou, Laptev, Sivic, "Learning and Transferring Mid-Level Image Representations using
Convolutional Neural Networks" (CVPR 2014).

``import densescore`` loads next to nothing: each public name is imported when it is first used.

Example:
    >>> import densescore, skimage
    >>> densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).top(1)[0].label
    'Egyptian cat'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densescore.data.boxed_set import BoxedImage, BoxedSet
    from densescore.data.labeled_set import LabeledImage, LabeledSet
    from densescore.data.load import load_boxed, load_set
    from densescore.errors import (
        DensescoreError,
        DensescoreWarning,
        MissingPackageError,
        NotConvolutionalError,
        OutOfMemoryError,
        WriteError,
    )
    from densescore.evaluation.evaluate import evaluate_classes, score_set
    from densescore.geometry import PAPER_SCALES, Level, Pyramid
    from densescore.io.images import read_image
    from densescore.jobs.annotated_video import annotate_video
    from densescore.jobs.huge.scoring import score_huge
    from densescore.jobs.huge.source import open_huge
    from densescore.models.adaptation import HeadFile, load_head, save_head
    from densescore.network.export import export_model
    from densescore.results.best_patches import BestPatch, best_patches
    from densescore.results.formats import to_coco, to_row, to_supervision
    from densescore.results.heatmaps import export_heatmaps
    from densescore.results.patches import Patch, PatchFeatures
    from densescore.results.regions import Region
    from densescore.results.response_maps import response_maps
    from densescore.results.scores import DenseScores, Place, Ranked
    from densescore.scoring.classify import classify
    from densescore.scoring.scorer import DenseScorer
    from densescore.scoring.stream import Scored, score_many
    from densescore.scoring.video import ScoredFrame, score_video
    from densescore.transfer.feature_cache import FeatureCache
    from densescore.transfer.pipeline import cached_scores, train_model
    from densescore.transfer.recipe import RECIPES, Recipe

    __version__: str

_EXPORTS = {
    "data.boxed_set": ("BoxedImage", "BoxedSet"),
    "data.labeled_set": ("LabeledImage", "LabeledSet"),
    "data.load": ("load_boxed", "load_set"),
    "errors": (
        "DensescoreError",
        "DensescoreWarning",
        "MissingPackageError",
        "NotConvolutionalError",
        "OutOfMemoryError",
        "WriteError",
    ),
    "evaluation.evaluate": ("evaluate_classes", "score_set"),
    "geometry": ("PAPER_SCALES", "Level", "Pyramid"),
    "io.images": ("read_image",),
    "jobs.annotated_video": ("annotate_video",),
    "jobs.huge.scoring": ("score_huge",),
    "jobs.huge.source": ("open_huge",),
    "models.adaptation": ("HeadFile", "load_head", "save_head"),
    "network.export": ("export_model",),
    "results.best_patches": ("BestPatch", "best_patches"),
    "results.formats": ("to_coco", "to_row", "to_supervision"),
    "results.heatmaps": ("export_heatmaps",),
    "results.patches": ("Patch", "PatchFeatures"),
    "results.regions": ("Region",),
    "results.response_maps": ("response_maps",),
    "results.scores": ("DenseScores", "Place", "Ranked"),
    "scoring.classify": ("classify",),
    "scoring.scorer": ("DenseScorer",),
    "scoring.stream": ("Scored", "score_many"),
    "scoring.video": ("ScoredFrame", "score_video"),
    "transfer.feature_cache": ("FeatureCache",),
    "transfer.pipeline": ("cached_scores", "train_model"),
    "transfer.recipe": ("RECIPES", "Recipe"),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "PAPER_SCALES",
    "RECIPES",
    "BestPatch",
    "BoxedImage",
    "BoxedSet",
    "DenseScorer",
    "DenseScores",
    "DensescoreError",
    "DensescoreWarning",
    "FeatureCache",
    "HeadFile",
    "LabeledImage",
    "LabeledSet",
    "Level",
    "MissingPackageError",
    "NotConvolutionalError",
    "OutOfMemoryError",
    "Patch",
    "PatchFeatures",
    "Place",
    "Pyramid",
    "Ranked",
    "Recipe",
    "Region",
    "Scored",
    "ScoredFrame",
    "WriteError",
    "__version__",
    "annotate_video",
    "best_patches",
    "cached_scores",
    "classify",
    "evaluate_classes",
    "export_heatmaps",
    "export_model",
    "load_boxed",
    "load_head",
    "load_set",
    "open_huge",
    "read_image",
    "response_maps",
    "save_head",
    "score_huge",
    "score_many",
    "score_set",
    "score_video",
    "to_coco",
    "to_row",
    "to_supervision",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = import_module("importlib.metadata").version("densescore")
    elif name in _MODULES:
        value = getattr(import_module(f"densescore.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'densescore' has no attribute {name!r}")
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
