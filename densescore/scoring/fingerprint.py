"""What results follow from besides the image: for caches, tables and jobs that may only go on with the same."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer

Context = Literal["image", "patch"]

Stage = Literal["features", "patch scores", "image scores"]


def fingerprint(scorer: "DenseScorer", of: Stage, context: Context) -> dict[str, Any]:
    """See `DenseScorer.fingerprint`."""
    features = {
        "weights": scorer.weights_digest,
        "mean": scorer.mean,
        "std": scorer.std,
        "patch": scorer.network.patch,
        "stride": scorer.network.stride,
        "device": scorer.device.type,
        "dtype": str(scorer.dtype),
        "runtime": scorer.runtime,
        "context": context,
    }
    if of == "features":
        return features
    patch_scores = {
        "densescore": version("densescore"),
        "model": scorer.name,
        "classifier": scorer.classifier_digest,
        "activation": scorer.activation,
        "scales": scorer.scales if scorer.patch_sizes is None else None,
        "patch_sizes": scorer.patch_sizes,
        **features,
    }
    if of == "patch scores":
        return patch_scores
    return {**patch_scores, "labels": scorer.labels, "k": scorer.k, "max_cells": scorer.max_cells}
