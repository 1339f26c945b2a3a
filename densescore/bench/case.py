"""What is benchmarked: a network, an image, and the ways to score it."""

from dataclasses import dataclass
from pathlib import Path

from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES

CONTENDERS = (
    "crops",
    "crops-compile",
    "crops-onnxruntime",
    "crops-openvino",
    "dense-modules",
    "dense-timm",
    "dense-onnxruntime",
    "dense-openvino",
)
"""Ways to score beside densescore's own. ``crops…`` cut every patch out; ``dense…`` run over whole levels."""


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        model: a name that ``densescore models`` lists.
        weights: ``"default"``, a file, or None for random ones.
        classes: outputs of a random FCa and FCb that replace FC8; 0 leaves the network as it is.
        image: a picture's file; None for a smooth random picture of 500×375 pixels.
        scales: λ per level.
        dtype: in which all contenders compute.
        device: where they run.
        runtime: of densescore's trunk on a CPU.
        contenders: of `CONTENDERS`.
        crop_cells: patches that are cropped, evenly drawn, and scaled up; 0 for all.
        rounds: timed runs of each contender, in turn.

    Raises:
        DensescoreError: an unknown contender.
    """

    model: str = "lite0"
    weights: str | None = "default"
    classes: int = 0
    image: Path | None = None
    scales: tuple[float, ...] = PAPER_SCALES
    dtype: str = "float32"
    device: str = "auto"
    runtime: str = "auto"
    contenders: tuple[str, ...] = ("crops", "dense-modules", "dense-onnxruntime", "dense-openvino")
    crop_cells: int = 512
    rounds: int = 5

    def __post_init__(self) -> None:
        if unknown := [name for name in self.contenders if name not in CONTENDERS]:
            raise DensescoreError(f"contenders: unknown {', '.join(unknown)}; expected {', '.join(CONTENDERS)}")

    @property
    def command(self) -> str:
        """The command line that runs this case again."""
        return (
            f"densescore-bench --model {self.model} --weights {self.weights or 'random'} --classes {self.classes} "
            f"--dtype {self.dtype} --runtime {self.runtime} --rounds {self.rounds} --crop-cells {self.crop_cells} "
            f"--contenders {','.join(self.contenders)}"
        )
