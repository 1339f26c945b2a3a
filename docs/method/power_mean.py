"""What the exponent of the image score does: from the mean over the patches towards their best one."""

from pathlib import Path

import cyclopts
import numpy as np
import skimage
from matplotlib.figure import Figure

import densescore


def main(out: Path = Path(__file__).with_suffix(".png")) -> None:
    scores = densescore.classify(skimage.data.chelsea())
    labels = [best.label for best in scores.top(4)]
    exponents = np.geomspace(1, 20, 40)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label in labels:
        column = scores.index(label)
        patches = scores.patch_scores[:, column].sort(descending=True).values
        left.plot(np.arange(1, len(patches) + 1), patches, label=label)
        # The k-th root only puts all exponents on one axis; it changes no order.
        means = [scores.image_scores(k)[column].item() ** (1 / k) for k in exponents]
        (line,) = right.plot(exponents, means, label=label)
        right.plot(exponents[-1] * 1.15, patches[0], "<", color=line.get_color())
    left.set(xscale="log", xlabel="patches, best first", ylabel="score of the patch", ylim=(0, 1))
    right.set(xscale="log", xlabel="k", ylabel="(mean of $y^k$)$^{1/k}$", ylim=(0, 1))
    right.set_xticks((1, 2, 5, 10, 20), labels=("1: mean", "2", "5", "10", "20"))
    right.axvline(5, color="gray", linestyle=":")
    right.legend(title="◂ best patch", fontsize=8, title_fontsize=8, loc="upper left")
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    cyclopts.run(main)
