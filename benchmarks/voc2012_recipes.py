"""Recipes that voc2012_mini.py compares: the earlier default, and the way from the paper's to today's."""

from dataclasses import replace
from typing import Any

from densescore.transfer.recipe import RECIPES, Recipe

EARLIER = Recipe(
    objective="multilabel", scales=(0.7, 1.0, 1.3, 2.0, 2.8), test_scales=(0.7, 1.0, 1.3, 2.0, 2.8, 4.0), round=16_384,
    tolerance=0.05, max_rounds=4, image_rounds=6,
)  # fmt: skip
"""The default recipe of densescore 0.1: what the rows without mirror images change, one thing at a time."""


def ladder(last_model: str) -> dict[str, tuple[str, Recipe]]:
    """From the paper's recipe, at the default's scales, to the default, one step after another; with their models."""
    default, recipe = RECIPES["default"], RECIPES["paper"]
    recipe = replace(recipe, scales=default.scales, test_scales=default.test_scales)
    steps: dict[str, dict[str, Any]] = {
        "the paper's, at five scales and a sixth at test": {},
        "+ a patch may touch another class's object": {"rule": default.rule},
        "+ a sigmoid per class": {"objective": "multilabel"},
        "+ standardized features": {"standardize": True},
        "+ mirror images, shorter stages": {"flips": True, "round": 16_384, "tolerance": 0.05, "max_rounds": 4},
        "+ image labels": {"image_rounds": 6},
        "+ principal components": {"components": default.components, "width": default.width},
        "+ dropout of features, gentler on image labels": {
            name: getattr(default, name)
            for name in (
                "feature_dropout", "max_gradient", "image_rounds", "image_patches", "image_learning_rate",
                "patch_weight",
            )
        },
        "+ four heads": {"heads": default.heads},
    }  # fmt: skip
    rungs = {}
    for title, changes in steps.items():
        recipe = replace(recipe, **changes)
        rungs[title] = "lite0", recipe
    rungs["+ the maps of three stages: the default"] = last_model, recipe
    return rungs
