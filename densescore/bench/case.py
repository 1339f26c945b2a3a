"""The settings of a benchmark; light to import, as the command line reads its defaults."""

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
    "dense-compile",
    "dense-timm",
    "dense-onnxruntime",
    "dense-openvino",
)
"""Other ways to score: ``crops…`` cut every patch out, ``dense…`` run over whole levels."""


ALL_CONTENDERS = ("crops", "crops-compile", "dense-modules", "dense-compile", "dense-timm")
"""Those that run on a GPU."""


@dataclass(frozen=True)
class Case:
    """One benchmark. An unknown contender raises DensescoreError."""

    model: str = "lite0"  # as `densescore models` lists it
    weights: str | None = "default"  # "default", a file, or None for random ones
    classes: int = 0  # outputs of a random FCa, FCb instead of FC8; 0 keeps FC8
    image: Path | None = None  # None: a smooth random picture of 500×375 pixels
    scales: tuple[float, ...] = PAPER_SCALES
    dtype: str = "float32"
    device: str = "auto"
    runtime: str = "auto"  # of densescore's trunk on a CPU
    contenders: tuple[str, ...] = ("crops", "dense-modules", "dense-onnxruntime", "dense-openvino")
    crop_cells: int = 512  # patches that are cropped, evenly drawn, and scaled up; 0 for all
    rounds: int = 5  # timed runs of each contender

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
