"""Options that several commands share, and the checks before the work begins."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt
from cyclopts.validators import Number

from densescore.cli.console import detail, notice
from densescore.errors import DensescoreError
from densescore.models.labels import find_classes, known_labels

if TYPE_CHECKING:
    from densescore.data.labeled_set import LabeledSet
    from densescore.scoring.scorer import DenseScorer
    from densescore.transfer.feature_cache import FeatureCache
    from densescore.transfer.patch_labels import LabelRule


def panel(title: str = "", number: float = 0) -> Callable[..., Parameter]:
    """Maker of options in a panel of the help: ``make(help, *spellings, **cyclopts)``."""
    shared: dict[str, Any] = {"group": Group(title, sort_key=number)} if title else {}
    return lambda text, *names, **more: Parameter(names or None, help=text, **shared, **more)


option = panel()
more_option = panel("More options", 0.5)
patch_option = panel("Patches and scores", 1)
network_option = panel("Network", 2)
rule_option = panel("Patch labels", 3)
cache_option = panel("Feature cache", 4)

NOT_AN_OPTION = Parameter(parse=False)
"""Mark of a field that a command's variant of a dataclass does not offer."""


def out_option(text: str) -> Parameter:
    """The option ``--output``."""
    return option(text, "--output", "-o", "--out")


def _read_weights(_: Any, tokens: Sequence[Any]) -> str | None:
    return None if tokens[0].value == "random" else str(tokens[0].value)


Weights = Annotated[str | None, network_option("Weights file, 'default', or 'random'.", converter=_read_weights)]
Scales = Annotated[str, patch_option("Ratios of the image's short side to a patch's: 1,2,4. The model's by default.")]
PatchSizes = Annotated[str, patch_option("Patch sides in image pixels, separated by commas, instead of scales.")]
Stride = Annotated[int | None, patch_option("Pixels from one patch to the next: 16 or 8 give more patches than 32.")]
Threshold = Annotated[
    float | None,
    patch_option(
        "Probability from which the answer is yes; the model's own by default.", validator=Number(gte=0, lte=1)
    ),
]
K = Annotated[float | None, patch_option("Exponent of the image score, equation (1). 5, or the head's, by default.")]
Dtype = Annotated[str, network_option("auto, float32, float16, or bfloat16 (twice as fast on recent CPUs).")]
Device = Annotated[str, network_option("auto, cpu, cuda, cuda:1, …")]
Model = Annotated[
    str, network_option("Name from `densescore models --all`, a trained head (.safetensors), or hf-hub:user/name.")
]
Labels = Annotated[Path | None, network_option("Text file of class names, one per line, instead of the model's.")]
Overwrite = Annotated[bool, option("Replace existing results.")]
Json = Annotated[bool, option("Print JSON instead of tables.", "--json")]
JsonLines = Annotated[bool, option("Print one JSON object per line instead of tables.", "--json")]
_FPS = "Frames per second of videos; {} by default. If given, folders are searched for videos as well."
ONE_FPS, FIVE_FPS = (option(_FPS.format(rate), validator=Number(gte=1e-6)) for rate in (1, 5))


@Parameter(name="*")
@dataclass(frozen=True)
class ScorerOptions:
    """Options of a `DenseScorer`."""

    model: Model = "lite0"
    weights: Weights = "default"
    scales: Scales = ""
    patch_sizes: PatchSizes = ""
    stride: Stride = None
    k: K = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    runtime: Annotated[str, network_option("Runtime on a CPU: auto, torch or openvino.")] = "auto"
    labels: Labels = None
    context: Annotated[str, patch_option("image: one dense pass. patch: crops, slow, for any classifier.")] = ""
    threshold: Threshold = None

    def check(self, classes: Sequence[str] = ()) -> None:
        """Refuse unreadable numbers, and unknown classes and groups if the labels are known without loading a model."""
        self.arguments()
        labels = known_labels(self.model, self.weights) if classes and self.labels is None else None
        if labels is not None:
            for name in classes:
                find_classes(name, labels)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `DenseScorer`."""
        lists = {"scales": numbers(self.scales, "--scales"), "patch_sizes": numbers(self.patch_sizes, "--patch-sizes")}
        single = {name: value for name, value in vars(self).items() if name not in lists}
        return {**single, **{name: values for name, values in lists.items() if values}, "context": self.context or None}

    @property
    def files(self) -> list[str | Path]:
        """Input files, which no output may replace."""
        return [item for item in (self.model, self.weights, self.labels) if item is not None]

    def build(self, **changes: Any) -> "DenseScorer":
        """The scorer, with arguments that the command sets itself."""
        arguments = {**self.arguments(), **changes}  # errors in the options come before torch is loaded
        from densescore.scoring.scorer import DenseScorer

        scorer = DenseScorer(**arguments)
        detail(scorer.describe())
        return scorer


@Parameter(name="*")
@dataclass(frozen=True)
class ClassOptions:
    """Classes or groups: ``--classes a,b``, or ``--class a --class b`` for names with commas."""

    classes: Annotated[str, option("Class names, separated by commas, or groups such as dog for all breeds.")] = ""
    class_: Annotated[list[str] | None, more_option("A class or group whose name holds commas; repeatable.")] = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names, each once."""
        listed = [name.strip() for name in self.classes.split(",")] if self.classes else []
        return tuple(dict.fromkeys([*listed, *(self.class_ or ())]))

    def among(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The classes and groups as a model with these labels names them; prints the members of groups."""
        matches = {match.label: match for match in (find_classes(name, labels) for name in self.names)}
        for label, match in matches.items():
            if match.is_group:
                first = ", ".join(labels[column] for column in match.columns[:3])
                count = len(match.columns)
                notice(f"{label}: {count} {'class' if count == 1 else 'classes'}: {first}{', …' if count > 3 else ''}")
        return tuple(matches)


Data = Annotated[Path, option("Data set: VOC, COCO, YOLO, a folder per class, or a table (.csv, .tsv, .jsonl).")]
Split = Annotated[str, option("Image set (split) of the data.", "--set")]
Seed = Annotated[NonNegativeInt, more_option("Seed of all random numbers; the file records it.")]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """Images of a data set, and the labels or boxes to use; without a split, val, or all of a set without splits."""

    split: Split = "train"
    labels: Annotated[
        Literal["auto", "image", "box", "both"],
        more_option("image labels only, only images with box labels, or both; auto: boxes if any.", "--supervision"),
    ] = "auto"
    val_share: Annotated[float | None, more_option("Fraction to draw as val where there is no val split: 0.2.")] = None

    def read(self, data: Path, *, need_positives: bool = False) -> "LabeledSet":
        """Read the images of the split."""
        from densescore.data.load import load_set

        return load_set(
            data, self.split or None, labels=self.labels, val_share=self.val_share, need_positives=need_positives
        )


@Parameter(name="*")
@dataclass(frozen=True)
class CacheOptions:
    """Folder and size of the feature cache."""

    cache: Annotated[Path | None, cache_option("Folder of features; ~/.cache/densescore/features by default.")] = None
    cache_size: Annotated[NonNegativeFloat | None, cache_option("Maximum size in GB; 20 by default.")] = None

    def of(self, scorer: "DenseScorer") -> "FeatureCache":
        """The feature cache of a scorer."""
        from densescore.transfer.feature_cache import DEFAULT_BYTES, DEFAULT_CACHE, FeatureCache

        max_bytes = DEFAULT_BYTES if self.cache_size is None else int(self.cache_size * 1e9)
        return FeatureCache(scorer, self.cache or DEFAULT_CACHE, max_bytes=max_bytes)


@Parameter(name="*")
@dataclass(frozen=True)
class RuleOptions:
    """Changes to a recipe's rule for positive patches; None leaves the recipe's."""

    patch_share: Annotated[float | None, rule_option("Fraction of a positive patch that its object covers; 0.2.")] = (
        None
    )
    object_share: Annotated[float | None, rule_option("Fraction of the object inside a positive patch; 0.6.")] = None
    overlap: Annotated[
        Literal["touch", "part", "rule", "class"] | None,
        rule_option("Overlap with a second object: touch, part, rule or class (default)."),
    ] = None

    def change(self, rule: "LabelRule") -> "LabelRule":
        """The rule with these changes."""
        return replace(rule, **{name: value for name, value in vars(self).items() if value is not None})


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Read ``"1,2,4"``; an empty text holds none."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as problem:
        raise DensescoreError(f"{option}: expected numbers separated by commas, got {text!r}") from problem


def check_new(path: Path | None, overwrite: bool, inputs: Iterable[str | Path | None] = (), folder: str = "") -> None:
    """Refuse to replace existing results before the work begins; see `check_replaceable`. Missing inputs come first."""
    if path is None:
        return
    from densescore.io.files import check_replaceable
    from densescore.io.find import exists, near_files

    files = [item for item in inputs if item is not None]
    for file in files:  # other strings may be names of models
        if (isinstance(file, Path) or file.endswith(".safetensors")) and not exists(file):
            raise DensescoreError(f"{file}: no such file or folder{near_files(file)}")
    check_replaceable(path, overwrite=overwrite, folder=folder, inputs=files)


def check_new_weights(path: Path, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """`check_new` for a file whose name must end in .safetensors."""
    if path.suffix != ".safetensors":
        raise DensescoreError(f"--output: expected a name that ends in .safetensors, got {path}")
    check_new(path, overwrite, inputs)
