"""Rank the classes of a photograph, and see where the best one is."""

from pathlib import Path

import cyclopts
import skimage
from matplotlib.figure import Figure

import densescore


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    photo = skimage.data.coffee()
    scores = densescore.classify(photo)  # a path does as well
    for ranked in scores.top(5):
        print(f"{ranked.confidence:.2g}  {ranked.label}")

    label = scores.top(1)[0].label
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(photo)
    left.set_axis_off()
    scores.plot(label, ax=right)  # as `densescore heatmap` draws it
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    cyclopts.run(main)
