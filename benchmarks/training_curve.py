"""Training and validation over the length of a training: does a head learn too little, or by heart?

    python benchmarks/training_curve.py --data ../shared/data/voc2012-mini

One head per point, trained on labels alone, or on boxes and then on labels, for so many passes on image labels; the
rest is the default recipe. Mean average precision of the images that it was trained on, and of the validation images,
over the 12 well-filled classes. Kept in ``results/training_curve.json``, drawn in ``training_curve.png``.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from voc2012_baselines import CLASSES
from voc2012_mini import RESULTS, STAGES, Experiment

from densescore import DenseScorer
from densescore.data.boxed_set import BoxedSet
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.io.files import atomic_write
from densescore.transfer.feature_cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.pipeline import cached_scores
from densescore.transfer.recipe import RECIPES

PASSES = (1, 4, 16, 32)


def average_precision(head: Path, images: BoxedSet, cache: Path) -> float:
    """Mean over the classes."""
    scorer = DenseScorer(head)
    found = score_set(images, cached_scores(scorer, FeatureCache(scorer, cache)), (5.0,))
    value = mean_of(evaluate_classes(found, 5.0), "ap", CLASSES)
    assert value is not None
    return value


def point(experiment: Experiment, taught: str, passes: int) -> dict[str, float]:
    """One head: its last loss, and its average precision on both sets."""
    recipe = replace(RECIPES["default"], heads=1, image_rounds=passes, label_rounds=passes)
    path = experiment.heads / f"curve-{taught}-{passes}.safetensors"
    images = experiment.drawn(0, None, 0 if taught == "labels" else None)
    loss = experiment.train_one(path, STAGES, recipe, 0, images)
    sets = {"train": experiment.train, "val": experiment.val}
    return {"loss": loss} | {name: average_precision(path, images, experiment.folder) for name, images in sets.items()}


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Both sets over the passes, a line per kind of teaching."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="passes over the images, on their labels", ylabel="mean average precision"
    )
    for (taught, points), color in zip(curves.items(), ("tab:blue", "tab:orange"), strict=False):
        passes = sorted(map(int, points))
        for name, line in (("train", "--"), ("val", "-")):
            values = [points[str(at)][name] for at in passes]
            axes.plot(passes, values, line, color=color, marker="o", label=f"{taught}, {name}")
    axes.set_xticks(PASSES, map(str, PASSES))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc2012-mini"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--heads", type=Path, default=Path("build/voc2012_mini"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    experiment = Experiment(options.data, options.cache, 1, options.heads)
    path = options.results / "training_curve.json"
    curves: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for taught in ("labels", "boxes and labels"):
        for passes in PASSES:
            own = curves.setdefault(taught, {})
            if str(passes) not in own:
                own[str(passes)] = point(experiment, taught, passes)
                print(taught, passes, own[str(passes)], flush=True)
                with atomic_write(path, overwrite=True) as temporary:
                    temporary.write_text(json.dumps(curves, indent=1) + "\n")
    draw(curves, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
