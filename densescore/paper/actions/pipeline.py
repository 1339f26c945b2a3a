"""From a set of persons to the file of what was trained on them."""

import os
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from densescore.models.adaptation import HeadFile
from densescore.models.registry import Classifier
from densescore.paper.actions.file import save_actions
from densescore.paper.actions.training import ActionRecipe, train_persons
from densescore.paper.actions.voc import ActionSet, as_boxes
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import change_recipe, train_model
from densescore.transfer.recipe import RECIPES, Recipe


def train_on_boxes(
    out: str | os.PathLike[str],
    actions: ActionSet,
    classifier: Classifier,
    recipe: ActionRecipe,
    seed: int = 0,
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """`train_persons`, which takes the options, and its file, with a record of how it came about."""
    network, labels = train_persons(actions, classifier, recipe, seed, **options)
    record: dict[str, Any] = {"seed": seed, "set": actions.name, "persons": len(actions.persons)}
    record["versions"] = {name: version(name) for name in ("densescore", "torch", "timm")}
    save_actions(out, network, labels, classifier.name, classifier.patch_size, recipe, record, overwrite=overwrite)


def sliding_recipe(scales: tuple[float, ...] | None = None) -> Recipe:
    """How a head for dense scoring is trained on persons' boxes: the default recipe, at other scales if given."""
    return change_recipe(RECIPES["default"], scales=scales)


def train_sliding(
    actions: ActionSet,
    scorer: DenseScorer,
    cache: FeatureCache,
    recipe: Recipe,
    seed: int = 0,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> HeadFile:
    """A head for dense scoring, of the persons' boxes alone; see `train_model` for the arguments and the errors."""
    return train_model(as_boxes(actions), scorer, cache, recipe, seed, checkpoint=checkpoint, track=track)
