"""The options that several commands share, each defined once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densescore.cli.console import detail, note
from densescore.errors import DensescoreError
from densescore.models.labels import find_classes, known_labels

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer

_PATCHES, _NETWORK = "Patches and scores", "Network"


def _none_if_random(weights: str) -> str | None:
    return None if weights == "random" else weights


Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="A weights file for the network, 'default', or 'random'.",
        callback=_none_if_random,
        rich_help_panel=_NETWORK,
    ),
]
Scales = Annotated[
    str,
    typer.Option(
        "--scales",
        help="Short side of the image over side of a patch, with commas between: 1,2,4. By default the model's.",
        rich_help_panel=_PATCHES,
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …", rich_help_panel=_NETWORK)]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="A name that `densescore models --all` lists, or a trained head (.safetensors).",
        rich_help_panel=_NETWORK,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.", show_default=False)]


def out_option(help_text: str, shown: bool | str = False) -> Any:
    """The option ``--out``, whose meaning is the command's own; `shown`: its default in the help."""
    return typer.Option("--out", "-o", help=help_text, show_default=shown)


@dataclass(frozen=True)
class ScorerOptions:
    """The scorer that a command's options describe; `build` makes it."""

    model: Model = "lite0"
    weights: Weights = "default"
    scales: Scales = ""
    patch_sizes: Annotated[
        str,
        typer.Option(
            help="Sides of the patches in image pixels, with commas between, instead of scales.",
            rich_help_panel=_PATCHES,
            show_default=False,
        ),
    ] = ""
    stride: Annotated[
        int | None,
        typer.Option(
            help="Pixels of a level between patches: 16 or 8 for more than the network's 32.",
            rich_help_panel=_PATCHES,
        ),
    ] = None
    k: Annotated[
        float | None,
        typer.Option(
            "--k", help="Exponent of the image score, eq. (1); 5, or the head's, by default.", rich_help_panel=_PATCHES
        ),
    ] = None
    device: Device = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16 (half the time on newer processors) or float16.", rich_help_panel=_NETWORK
        ),
    ] = "auto"
    runtime: Annotated[str, typer.Option(help="On a CPU: auto, torch or openvino.", rich_help_panel=_NETWORK)] = "auto"
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="A text file with one class name a line, instead of the model's.", rich_help_panel=_NETWORK
        ),
    ] = None
    context: Annotated[
        str,
        typer.Option(
            help="image: one dense pass. patch: the paper's crops (slow), for any classifier. By default the model's.",
            rich_help_panel=_PATCHES,
            show_default=False,
        ),
    ] = ""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `DenseScorer`.

        Raises:
            DensescoreError: names the option that cannot be read.
        """
        given: dict[str, Any] = {
            name: getattr(self, name) for name in ("model", "weights", "stride", "k", "device", "dtype", "runtime")
        }
        given |= {"labels": self.labels, "context": self.context or None}
        if self.scales:
            given["scales"] = numbers(self.scales, "--scales")
        if self.patch_sizes:
            given["patch_sizes"] = numbers(self.patch_sizes, "--patch-sizes")
        return given

    @property
    def files(self) -> list[str | Path]:
        """The paths that the options name: what a run reads, which it must not replace."""
        given = (self.model, self.weights, self.labels)
        return [item for item in given if item is not None]

    def build(self, **changes: Any) -> "DenseScorer":
        """The scorer.

        Args:
            **changes: arguments of `DenseScorer` that a command sets itself.
        """
        arguments = {**self.arguments(), **changes}  # what is wrong with the options is said before torch is loaded
        from densescore.scoring.describe import describe_scorer
        from densescore.scoring.scorer import DenseScorer

        scorer = DenseScorer(**arguments)
        detail(describe_scorer(scorer))
        return scorer

    def check_classes(self, names: Sequence[str]) -> None:
        """Refuse a class or group that the model does not have, if that is known before its weights are read.

        Raises:
            DensescoreError: no such class or group; the message lists the nearest names.
        """
        labels = known_labels(self.model, self.weights) if names and self.labels is None else None
        if labels is not None:
            for name in names:
                find_classes(name, labels)


@dataclass(frozen=True)
class ClassOptions:
    """A choice of classes or groups: ``--classes a,b``, or ``--class a --class b``, where a name may hold commas."""

    classes: Annotated[
        str,
        typer.Option(
            help="Names of classes, with commas between; or of groups, such as dog for all breeds.", show_default=False
        ),
    ] = ""
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name of a class or group, commas and all; may be repeated.", show_default=False),
    ] = None

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen classes, each once; none by default."""
        listed = [name.strip() for name in self.classes.split(",")] if self.classes else []
        return tuple(dict.fromkeys([*listed, *(self.class_ or ())]))

    def among(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The chosen classes and groups as a model's results name them, each once; a note says what a group is.

        Args:
            labels: of the model.

        Raises:
            DensescoreError: no such class or group.
        """
        found = {classes.label: classes for classes in (find_classes(name, labels) for name in self.names)}
        for label, classes in found.items():
            if classes.is_group:
                first = ", ".join(labels[column] for column in classes.columns[:3])
                count = len(classes.columns)
                note(f"{label}: {count} {'class' if count == 1 else 'classes'}: {first}{', …' if count > 3 else ''}")
        return tuple(found)


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Read ``"1,2,4"``.

    Raises:
        DensescoreError: names the option and what it got.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DensescoreError(f"{option}: expected numbers with commas between, got {text!r}") from error


def one_of(text: str, choices: Sequence[str], option: str) -> None:
    """Refuse what is not among the choices.

    Raises:
        DensescoreError: names the option and what it got.
    """
    if text not in choices:
        raise DensescoreError(f"{option}: expected {' or '.join(choices)}, got {text!r}")


def check_new(path: Path | None, overwrite: bool, inputs: Iterable[str | Path | None] = (), folder: str = "") -> None:
    """Refuse to write over what is there, before the work is done; see `check_replaceable`.

    Raises:
        DensescoreError: `path` exists and may not be replaced.
    """
    from densescore.io.files import check_replaceable

    if path is not None:
        given = [item for item in inputs if item is not None]
        check_replaceable(path, overwrite=overwrite, folder=folder, inputs=given)


def check_new_weights(path: Path, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """`check_new`, and refuse a name by which the file would not be read again.

    Raises:
        DensescoreError: `path` does not end in .safetensors, or exists and may not be replaced.
    """
    if path.suffix != ".safetensors":
        raise DensescoreError(f"--out: expected a name that ends in .safetensors, got {path}")
    check_new(path, overwrite, inputs)
