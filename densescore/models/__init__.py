"""The named networks, each with its preprocessing, labels, license and origin beside it."""

from densescore.models.adaptation import BACKGROUND, AdaptationHead, load_head, save_head
from densescore.models.krizhevsky import Krizhevsky
from densescore.models.registry import MODELS, Classifier, ModelEntry, load_classifier

__all__ = [
    "BACKGROUND",
    "MODELS",
    "AdaptationHead",
    "Classifier",
    "Krizhevsky",
    "ModelEntry",
    "load_classifier",
    "load_head",
    "save_head",
]
