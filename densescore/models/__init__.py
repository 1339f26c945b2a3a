"""The named networks, each with its preprocessing, labels, license and origin beside it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ("adaptation", "krizhevsky", "registry")


def __getattr__(name: str) -> Any:  # imported when first used: `densescore.models.labels` is read without torch
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
