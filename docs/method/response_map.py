"""From patch scores to a response map: each level's patches averaged over the pixels they hold, then all levels."""

from pathlib import Path

import cyclopts
import skimage
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from densescore import DenseScorer


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    photo, label = skimage.data.coffee(), "espresso"
    figure = Figure(figsize=(9, 2), layout="constrained")
    axes = figure.subplots(1, 4)
    for place, scales in zip(axes, ((1,), (1.6,), (2.8,), (1, 1.6, 2.8)), strict=True):
        scores = DenseScorer("lite0", scales=scales, runtime="torch").score(photo)
        values = scores.response_map(label)[0].numpy()  # [H, W]
        place.imshow(photo)
        shown = place.imshow(values, cmap="turbo", norm=PowerNorm(0.5, 0, 1), alpha=0.75)
        name = f"λ = {scales[0]}" if len(scales) == 1 else "all three"
        place.set_title(f"{name}: {len(scores.boxes)} patches", fontsize=10)
        place.set_axis_off()
    figure.colorbar(shown, ax=axes, ticks=(0, 0.1, 0.5, 1), shrink=0.8)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    cyclopts.run(main)
