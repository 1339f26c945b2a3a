"""The options of commands that train on a set of images, or measure on one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densescore.transfer.patch_labels import LabelRule

if TYPE_CHECKING:
    from densescore.data.labeled_set import LabeledSet
    from densescore.scoring.scorer import DenseScorer
    from densescore.transfer.feature_cache import FeatureCache

Data = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Folder in VOC's, COCO's or YOLO's layout, with a folder per class, or a table (.csv, .tsv, .jsonl).",
        show_default=False,
    ),
]
ActionData = Annotated[Path, typer.Option("--data", help="Folder with VOC's ImageSets/Action.", show_default=False)]
Split = Annotated[str, typer.Option("--set", help="Image set of the data.")]
Seed = Annotated[int, typer.Option("--seed", help="Of all draws; recorded in the file.", min=0)]

_CACHE, _RULE = "Cached features", "Labels of patches"


@dataclass(frozen=True)
class DataOptions:
    """Which images of a data set, and what of them; `read` reads it."""

    split: Split = "train"
    labels: Annotated[
        str,
        typer.Option(
            help="image: labels of images alone. box: images with boxes alone. both. auto: boxes where there are some."
        ),
    ] = "auto"
    val_share: Annotated[
        float | None,
        typer.Option(help="Draw this share of a set without a val split as val: 0.2.", show_default=False),
    ] = None

    def read(self, data: Path, *, need_positives: bool = False) -> "LabeledSet":
        """The images of the split."""
        from densescore.data.load import load_set

        return load_set(
            data,
            self.split,
            labels=self.labels,  # type: ignore[arg-type]
            val_share=self.val_share,
            need_positives=need_positives,
        )


@dataclass(frozen=True)
class CacheOptions:
    """Where features are kept."""

    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which features are kept.",
            show_default="~/.cache/densescore/features",
            rich_help_panel=_CACHE,
        ),
    ] = None
    cache_size: Annotated[
        float | None,
        typer.Option(help="Most that it may hold, in GB.", min=0, show_default="20", rich_help_panel=_CACHE),
    ] = None

    def of(self, scorer: "DenseScorer") -> "FeatureCache":
        """The cache of a scorer's features."""
        from densescore.transfer.feature_cache import FeatureCache

        given: dict[str, Any] = {}
        if self.cache is not None:
            given["folder"] = self.cache
        if self.cache_size is not None:
            given["max_bytes"] = int(self.cache_size * 1e9)
        return FeatureCache(scorer, **given)


@dataclass(frozen=True)
class RuleOptions:
    """Which patches are positive; None and empty are the recipe's own."""

    patch_share: Annotated[
        float | None,
        typer.Option(help="Least share of a positive patch that its object fills; 0.2.", rich_help_panel=_RULE),
    ] = None
    object_share: Annotated[
        float | None,
        typer.Option(help="Least share of the object that a positive patch holds; 0.6.", rich_help_panel=_RULE),
    ] = None
    overlap: Annotated[
        str | None,
        typer.Option(
            help="What overlaps a second object: touch, part, rule or class (default).", rich_help_panel=_RULE
        ),
    ] = None

    def change(self, rule: LabelRule) -> LabelRule:
        """`rule` with what the options say instead."""
        return replace(rule, **{name: value for name, value in vars(self).items() if value is not None})
