"""Fit the probabilities of the ImageNet models on images of one class each, and measure them by cross-validation.

    python benchmarks/calibrate.py --data ../shared/data/imagenet-samples

Writes ``densescore/models/imagenet_calibration.json``. A class's confidence becomes its share of all classes' sharpened
confidences, a group's share is the sum over its classes, and one line turns log odds of shares into those of
probabilities, for classes and groups alike.
"""

import argparse
import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from densescore import DenseScorer
from densescore.io.files import atomic_write
from densescore.io.names import to_json
from densescore.models.calibration import Calibration
from densescore.models.labels import group_names, main_meaning, meanings_of
from densescore.transfer.cross_validation import find_thresholds, fit_line

FILE = Path(__file__).parents[1] / "densescore/models/imagenet_calibration.json"
FOLDS, PROMISED = 5, 0.9


def confidences(model: str, paths: list[Path]) -> NDArray[np.float64]:
    """Confidence of each image and class: ``[N, 1000]``."""
    scorer = DenseScorer(model)
    return np.stack([scorer.score(path).confidence().double().numpy() for path in paths])


def fit_sharpness(values: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Exponent whose shares give the true classes ``[N]`` the highest likelihood."""
    logs = torch.from_numpy(np.log(values.clip(np.finfo(np.float32).tiny)))
    target = torch.from_numpy(truth)

    def loss(sharpness: float) -> float:
        return float(torch.nn.functional.cross_entropy(logs * sharpness, target))

    return float(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x)


def shares(values: NDArray[np.float64], sharpness: float, members: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of classes and of groups, whose members are 1: ``[N, 1000]``, ``[1000, G]`` → ``[N, 1000 + G]``."""
    each = Calibration(sharpness=sharpness).inputs(torch.from_numpy(values).T).T.numpy()
    return np.concatenate([each, (each @ members).clip(max=1)], 1)


def error(probabilities: NDArray[np.float64], shown: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error over bins of equal counts."""
    parts = np.array_split(np.argsort(probabilities, axis=None), bins)
    gaps = [abs((probabilities.ravel()[part] - shown.ravel()[part]).sum()) for part in parts]
    return float(sum(gaps) / probabilities.size)


def main() -> None:
    """Fit every model, print what cross-validation says, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imagenet-samples"))
    parser.add_argument("--models", default="lite0,lite1,lite2")
    arguments = parser.parse_args()
    rows = [*csv.DictReader((arguments.data / "labels.csv").open())]
    truth = np.array([int(row["class_index"]) for row in rows])
    meanings = [main_meaning(meanings_of(name)) for name in group_names()]
    columns = {each.columns for each in meanings if each is not None and 1 < len(each.columns) < 1000}
    members = np.zeros((1000, len(columns)))
    for number, group in enumerate(sorted(columns)):
        members[list(group), number] = 1
    shown = np.concatenate([np.eye(1000)[truth], members[truth]], 1) == 1  # [N, 1000 + G]

    fitted = {}
    for model in arguments.models.split(","):
        values = confidences(model, [arguments.data / "images" / row["file"] for row in rows])
        folds = np.random.default_rng(0).permutation(len(truth)) % FOLDS
        held_out = np.zeros(shown.shape)
        for fold in range(FOLDS):
            train, test = folds != fold, folds == fold
            sharpness = fit_sharpness(values[train], truth[train])
            line = fit_line(shares(values[train], sharpness, members).ravel(), shown[train].ravel())
            held_out[test] = line(shares(values[test], sharpness, members))
        sharpness = fit_sharpness(values, truth)
        line = fit_line(shares(values, sharpness, members).ravel(), shown.ravel())
        best = held_out[:, :1000].argsort(1)[:, -5:]
        top, right = (np.take_along_axis(each, best, 1) for each in (held_out, shown))
        shared = find_thresholds(line, top.ravel(), right.ravel(), PROMISED)
        fitted[model] = asdict(Calibration(shared=shared, sharpness=sharpness, promised=PROMISED))
        print(f"{model}: sharpness {sharpness:.3f}, line {line.outputs}, yes from {shared.yes}, {shared.precision}")
        print(f"calibration error: five best classes {error(top, right):.4f}", end=", ")
        print(f"groups {error(held_out[:, 1000:], shown[:, 1000:]):.4f}")
    with atomic_write(FILE, overwrite=True) as temporary:
        temporary.write_text(to_json(fitted, indent=1) + "\n")


if __name__ == "__main__":
    main()
