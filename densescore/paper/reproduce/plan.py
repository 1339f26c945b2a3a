"""The sizes of a reproduction: the paper's, and one that tries every step."""

from dataclasses import dataclass, replace

from densescore.paper.actions.training import ActionRecipe
from densescore.paper.pretrain.recipe import SourceRecipe
from densescore.paper.pretrain.source_classes import PRESETS
from densescore.paper.reproduce.tables import SOURCES
from densescore.transfer.recipe import RECIPES, Recipe


@dataclass(frozen=True)
class Sizes:
    """Sizes of every step.

    Attributes:
        classes: by source, the choice of classes as `choose` takes it.
        widths: by source, of FC6 and FC7.
        source: recipe of pre-training.
        transfer: recipe of FCa and FCb for objects.
        actions: recipe for actions; what is retrained follows from the row.
        crops: that NO PRETRAIN is trained on for objects.
        remark: said above each table.
    """

    classes: dict[str, str]
    widths: dict[str, int]
    source: SourceRecipe
    transfer: Recipe
    actions: ActionRecipe
    crops: int
    remark: str = ""


PAPER = Sizes(
    classes={name: PRESETS[preset] for name, preset in SOURCES.items()},
    widths={"PRE-1000C": 4096, "PRE-1000R": 4096, "PRE-1512": 6144},
    source=SourceRecipe(),
    transfer=RECIPES["paper"],
    actions=ActionRecipe(),
    crops=5_000_000,
)

SMOKE = Sizes(
    classes={"PRE-1000C": "n00000001,n00000002", "PRE-1000R": "random:2:0", "PRE-1512": "all"},
    widths={"PRE-1000C": 24, "PRE-1000R": 24, "PRE-1512": 32},
    source=SourceRecipe(batch=4, max_epochs=1, divisions=0),
    transfer=replace(
        RECIPES["paper"],
        scales=(1.0, 1.5),
        background=1.0,
        width=16,
        batch=8,
        round=64,
        max_rounds=1,
        standardize=True,
    ),
    actions=ActionRecipe(epochs=1, batch=4, width=16),
    crops=8,
    remark="**A smoke test on pictures drawn for it: the numbers mean nothing.**",
)
