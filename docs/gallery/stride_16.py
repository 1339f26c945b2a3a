"""The same photograph with patches every 32 and every 16 pixels of a level."""

from pathlib import Path

import cyclopts
import skimage
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from densescore import DenseScorer


def main(out: Path = Path(__file__).with_suffix(".jpg"), strides: str = "32,16") -> None:
    photo = skimage.data.chelsea()
    chosen = [int(stride) for stride in strides.split(",")]
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(1, len(chosen))
    colors = PowerNorm(0.5, 0, 1)
    for place, stride in zip(axes, chosen, strict=True):
        scorer = DenseScorer("lite0", stride=stride, scales=(2.8,))  # one scale: its grid can be seen
        scores = scorer.score(photo)
        values = scores.response_map("Egyptian cat")[0].numpy()  # [H, W]
        place.imshow(photo)
        shown = place.imshow(values, cmap="turbo", norm=colors, alpha=0.8)
        place.set_title(f"stride {stride}: {len(scores.boxes):,} patches")
        place.set_axis_off()
    figure.colorbar(shown, ax=axes, ticks=(0, 0.1, 0.5, 1))
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    cyclopts.run(main)
