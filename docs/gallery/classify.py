"""Rank the classes of a photograph, and see where the best one is."""

from pathlib import Path

import skimage
import typer
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

import densescore


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    photo = skimage.data.coffee()
    scores = densescore.classify(photo)  # a path does as well
    for label, score, _ in scores.top(5):
        print(f"{score:.4f}  {label}")

    label = scores.top(1)[0].label
    values = scores.response_map(label)[0].numpy()  # [H, W], raw averages
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(photo)
    right.imshow(photo)
    colors = PowerNorm(0.5, 0, 1)  # as `densescore heatmap`: the same colors in every picture
    right.imshow(values, cmap="turbo", norm=colors, alpha=0.1 + 0.7 * colors(values))
    right.set_title(f"{label}: peak {values.max():.2f}")
    for place in (left, right):
        place.set_axis_off()
    figure.colorbar(ScalarMappable(colors, "turbo"), ax=right, ticks=(0, 0.1, 0.5, 1))
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    typer.run(main)
