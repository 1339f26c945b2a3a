"""What transfer is worth: voc2012-mini, mean over its 12 well-filled classes; one row, or all, per run.

    python benchmarks/voc2012_mini.py --data ../shared/data/voc2012-mini --rows probe,transfer,localisation

Each row is kept in ``results/voc2012_mini.json`` as soon as it is done; ``voc2012_mini.md`` is the table made of it.
Features are computed once and kept in the cache; the first run therefore takes the longest.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from densescore import DenseScorer
from densescore.average_precision import average_precision, precision_recall
from densescore.data.boxed import DIFFICULT, POSITIVE, BoxedImage, BoxedSet
from densescore.data.load import load_boxed
from densescore.data.patch_labels import LabelRule, Overlap
from densescore.evaluation import TOLERANCE, ClassResult, evaluate_classes, k_curve, mean_of, score_set
from densescore.files import written_whole
from densescore.models.adaptation import load_head, save_head
from densescore.transfer.cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.patches import gather
from densescore.transfer.pipeline import cached_features, cached_scores, head_file, train_both
from densescore.transfer.recipe import RECIPES, Recipe

CLASSES = tuple("bottle car cat chair cow dog horse person pottedplant sheep sofa tvmonitor".split())  # noqa: SIM905
"""Those with at least 8 positive val images, as the set's own README has it."""

KS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0)
NUMBERS = {
    "map": "mAP",
    "map_2007": "mAP, 2007 rule",
    "pointing": "pointing, mean of classes",
    "pointing_pooled": "pointing, all pairs",
    "pointing_map_maximum": "… at the map's maximum, mean of classes",
    "pointing_map_maximum_pooled": "… all pairs",
    "located_map": "AP with location",
}
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


class Experiment:
    """The data, the network and the cache that the rows share."""

    def __init__(self, data: Path, cache: Path, seeds: int, heads: Path) -> None:
        self.train, self.val = load_boxed(data, "train", need_positives=True), load_boxed(data, "val")
        self.folder, self.seeds, self.heads = cache, seeds, heads
        heads.mkdir(parents=True, exist_ok=True)

    def mean_ap(self, scores: NDArray[np.float64]) -> float:
        """mAP over `CLASSES` of scores ``[N, C]`` of the val images."""
        truth = self.val.truth()
        values = []
        for label in CLASSES:
            column = self.val.classes.index(label)
            kept = truth[:, column] != DIFFICULT
            curve = precision_recall(scores[kept, column], truth[kept, column] == POSITIVE)
            values.append(average_precision(curve))
        return float(np.mean(values))

    def transfer(self, name: str, recipe: Recipe, *, images: int | None = None, seeds: int | None = None) -> Row:
        """Train and evaluate heads; a head of the same recipe that is there from an earlier run is kept.

        `images`: only as many of the training images, drawn by the seed.
        """
        runs = []
        for seed in range(seeds or self.seeds):
            path = self.heads / f"{name.replace(' ', '-')}-{seed}.safetensors"
            if not path.is_file() or load_head(path).training["recipe"] != json.loads(json.dumps(asdict(recipe))):
                self.train_one(path, recipe, seed, images)
            training = load_head(path).training
            measured = {key: training.get(key) for key in ("patches", "seconds")}
            runs.append(self.evaluate(path) | measured)
            print(name, seed, {key: value for key, value in runs[-1].items() if key != "classes"}, flush=True)
        return summary(runs)

    def train_one(self, path: Path, recipe: Recipe, seed: int, images: int | None) -> None:
        """Train a head and write it, with the seconds that it took (features from the cache included)."""
        start = time.perf_counter()
        scorer = DenseScorer("lite0", scales=recipe.scales)
        cache = FeatureCache(scorer, self.folder)
        boxed = self.train
        if images is not None:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(boxed.images))[:images])
            boxed = BoxedSet(boxed.name, boxed.classes, tuple(boxed.images[i] for i in chosen))
        patches = gather(boxed, cached_features(scorer, cache), recipe, seed)
        head = train_both(patches, len(boxed.classes), recipe, seed)
        file = head_file(boxed, scorer, cache, patches, head, recipe, seed)
        file.training["seconds"] = round(time.perf_counter() - start, 1)
        save_head(path, file, overwrite=True)

    def evaluate(self, head: Path) -> Row:
        """All numbers of one head, at k = 5."""
        scorer = DenseScorer(head)
        score = cached_scores(scorer, FeatureCache(scorer, self.folder))
        result = score_set(self.val, score, KS)
        rows = evaluate_classes(result, 5.0)
        by_mean = evaluate_classes(score_set(self.val, score, (5.0,), locate="mean"), 5.0)
        fields = {"map": "ap", "map_2007": "ap_2007", "pointing": "pointing", "located_map": "located_ap"}
        return {
            **{key: mean_of(rows, field, CLASSES) for key, field in fields.items()},
            "pointing_pooled": pooled(rows),
            "pointing_map_maximum": mean_of(by_mean, "pointing", CLASSES),
            "pointing_map_maximum_pooled": pooled(by_mean),
            "k_curve": {f"{k:g}": value for k, value in k_curve(result, classes=CLASSES)},
            "classes": {
                row.label: {"ap": row.ap, "pointing": row.pointing, "images": row.positives}
                for row in rows
                if row.label in CLASSES
            },
        }


def pooled(rows: list[ClassResult]) -> float:
    """Pointing accuracy over all pairs of an image and a class it shows, not class by class."""
    chosen = [row for row in rows if row.label in CLASSES and row.pointing is not None]
    hits = sum((row.pointing or 0) * row.positives for row in chosen)
    return hits / sum(row.positives for row in chosen)


def summary(runs: list[Row]) -> Row:
    """Mean and spread (highest less lowest) of the runs' numbers, and the runs."""
    numbers = {key: [run[key] for run in runs] for key in NUMBERS if key in runs[0]}
    means: Row = {key: {"mean": float(np.mean(v)), "spread": float(np.ptp(v))} for key, v in numbers.items()}
    return means | {"runs": runs}


def probe_features(experiment: Experiment, image: BoxedImage, whole: bool) -> torch.Tensor:
    """The pooled features of an image's centre square, or of the whole image, at the size of one patch: ``[D]``."""
    import cv2

    from densescore import read_image

    pixels, side = read_image(image.path), 224
    if not whole:
        ratio = 256 / min(pixels.shape[:2])
        size = (round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    else:
        pixels = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return DenseScorerOnce.of(experiment).features(pixels)[0]


class DenseScorerOnce:
    """One level of exactly one patch: a plain forward pass."""

    _scorer: DenseScorer | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> DenseScorer:
        if cls._scorer is None:
            cls._scorer = DenseScorer("lite0", scales=(1.0,))
        return cls._scorer


def linear_probe(experiment: Experiment, whole: bool) -> tuple[Row, NDArray[np.float64], NDArray[np.float64]]:
    """Logistic regression per class on one feature vector per image; the row, weights ``[C, D]`` and biases ``[C]``."""
    features = [
        torch.stack([probe_features(experiment, image, whole) for image in boxed.images]).double().numpy()
        for boxed in (experiment.train, experiment.val)
    ]
    scaler = StandardScaler().fit(features[0])
    truth = experiment.train.truth()
    weights, biases = np.zeros((truth.shape[1], features[0].shape[1])), np.zeros(truth.shape[1])
    for column in range(truth.shape[1]):
        kept = truth[:, column] != DIFFICULT
        fitted = LogisticRegression(C=0.01, max_iter=2000)
        fitted.fit(scaler.transform(features[0][kept]), truth[kept, column] == POSITIVE)
        weights[column] = fitted.coef_[0] / scaler.scale_
        biases[column] = fitted.intercept_[0] - weights[column] @ scaler.mean_
    row = {"map": experiment.mean_ap(features[1] @ weights.T + biases)}
    print("linear probe", "whole image" if whole else "centre crop", row, flush=True)
    return summary([row]), weights, biases


def grad_cam(experiment: Experiment) -> Row:
    """Pointing accuracy of Grad-CAM on the linear probe of the whole image, by the package `grad-cam`."""
    import cv2
    import timm
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from densescore import read_image
    from densescore.models import load_classifier

    _, weights, biases = linear_probe(experiment, whole=True)
    network = load_classifier("lite0").module
    assert isinstance(network, timm.models.EfficientNet)
    network.classifier = torch.nn.Linear(weights.shape[1], len(weights))
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(weights))
        network.classifier.bias.copy_(torch.from_numpy(biases))
    cam = GradCAM(model=network.eval(), target_layers=[network.conv_head])
    hits: dict[str, list[bool]] = {label: [] for label in CLASSES}
    for image in experiment.val.images:
        pixels = cv2.resize(read_image(image.path), (224, 224), interpolation=cv2.INTER_AREA)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        for column in (image.truth == POSITIVE).nonzero()[0]:
            label = experiment.val.classes[column]
            if label in CLASSES:
                values = cam(input_tensor=tensor, targets=[ClassifierOutputTarget(int(column))])[0]
                values = cv2.resize(values, (image.width, image.height), interpolation=cv2.INTER_LINEAR)
                y, x = np.unravel_index(values.argmax(), values.shape)
                hits[label].append(points_at(image, int(column), x + 0.5, y + 0.5))
    return pointing_row("grad-cam", hits)


def image_centre(experiment: Experiment) -> Row:
    """Pointing accuracy of always naming the image's centre: what the photographers' habits alone are worth."""
    hits: dict[str, list[bool]] = {label: [] for label in CLASSES}
    for image in experiment.val.images:
        for column in (image.truth == POSITIVE).nonzero()[0]:
            if (label := experiment.val.classes[column]) in CLASSES:
                hits[label].append(points_at(image, int(column), image.width / 2, image.height / 2))
    return pointing_row("image centre", hits)


def points_at(image: BoxedImage, column: int, x: float, y: float) -> bool:
    """Whether a point lies in a box of a class, or within `TOLERANCE` of it."""
    x0, y0, x1, y1 = (image.boxes[image.classes == column] + TOLERANCE * np.array([-1, -1, 1, 1])).T
    return bool(((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).any())


def pointing_row(name: str, hits: dict[str, list[bool]]) -> Row:
    """The row of what each class's images came to."""
    row = {
        "pointing": float(np.mean([np.mean(found) for found in hits.values()])),
        "pointing_pooled": float(np.mean(np.concatenate(list(hits.values())))),
    }
    print(name, row, flush=True)
    return summary([row])


def train_images(experiment: Experiment, pretrained: bool, epochs: int = 8, seed: int = 0) -> Row:
    """One image, one forward, a sigmoid per class: all layers, random crops and flips, AdamW with a cosine schedule."""
    import timm
    from torchvision.transforms import v2

    from densescore import read_image
    from densescore.models import load_classifier

    torch.manual_seed(seed)
    network = load_classifier("lite0", weights="default" if pretrained else None).module
    assert isinstance(network, timm.models.EfficientNet)
    network.reset_classifier(len(experiment.train.classes))
    augment = v2.Compose([v2.RandomResizedCrop(224, scale=(0.4, 1.0)), v2.RandomHorizontalFlip()])
    plain = v2.Compose([v2.Resize((224, 224))])
    truth = torch.from_numpy(experiment.train.truth())

    def load(boxed: BoxedSet, index: int, transform: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return transform(torch.from_numpy(read_image(boxed.images[index].path)).permute(2, 0, 1)).float() / 127.5 - 1

    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-4 if pretrained else 1e-3, weight_decay=0.01)
    steps = epochs * -(-len(truth) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, optimiser.param_groups[0]["lr"], total_steps=steps)
    start = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        for batch in torch.randperm(len(truth)).split(16):
            logits = network(torch.stack([load(experiment.train, i, augment) for i in batch.tolist()]))
            target = truth[batch]
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, (target == POSITIVE).float(), reduction="none"
            )
            loss = (losses * (target != DIFFICULT)).sum() / len(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(
            f"pretrained={pretrained} epoch {epoch} loss {loss.item():.3f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    network.eval()
    with torch.inference_mode():
        images = range(len(experiment.val.images))
        scores = torch.cat([network(load(experiment.val, i, plain)[None]) for i in images]).double().numpy()
    row = {"map": experiment.mean_ap(scores), "training_s": round(time.perf_counter() - start, 1)}
    print("full fine-tuning" if pretrained else "no pretrain", row, flush=True)
    return summary([row])


def rows(experiment: Experiment) -> dict[str, Callable[[], dict[str, Row]]]:
    """Groups of rows by the name that ``--rows`` takes."""
    default = RECIPES["default"]

    def vary(recipes: dict[str, Recipe]) -> dict[str, Row]:
        return {name: experiment.transfer(name, recipe, seeds=1) for name, recipe in recipes.items()}

    return {
        "probe": lambda: {
            "linear probe, centre crop": linear_probe(experiment, whole=False)[0],
            "linear probe, whole image": linear_probe(experiment, whole=True)[0],
        },
        "transfer": lambda: {"transfer, default recipe": experiment.transfer("default", default)},
        "paper": lambda: {"transfer, paper's recipe": experiment.transfer("paper", RECIPES["paper"])},
        "objective": lambda: vary(
            {
                f"{objective}, {'image labels' if rounds else 'no image labels'}": replace(
                    default,
                    objective=objective,
                    image_rounds=rounds,
                )
                for objective in ("softmax", "multilabel")
                for rounds in (0, default.image_rounds)
            }
        ),
        "overlap": lambda: vary(
            {
                f"softmax, no image labels, overlap {overlap}": replace(
                    default, objective="softmax", image_rounds=0, rule=LabelRule(overlap=overlap)
                )
                for overlap in get_args(Overlap)
            }
        ),
        "images": lambda: {
            f"{count} training images": experiment.transfer(f"images {count}", default, images=count)
            for count in (50, 100, 200)
        },
        "localisation": lambda: {
            "always the image's centre": image_centre(experiment),
            "Grad-CAM on the linear probe": grad_cam(experiment),
        },
        "finetune": lambda: {"full fine-tuning of whole images": train_images(experiment, pretrained=True)},
        "scratch": lambda: {"NO PRETRAIN: the same from random weights": train_images(experiment, pretrained=False)},
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""

    def show(row: Row, key: str) -> str:
        if key not in row:
            return ""
        spread = f" ± {row[key]['spread'] / 2:.3f}" if len(row["runs"]) > 1 else ""
        return f"{row[key]['mean']:.3f}{spread}"

    lines = [f"| row | seeds | {' | '.join(NUMBERS.values())} |", "| --- " * (2 + len(NUMBERS)) + "|"]
    for name, row in results["rows"].items():
        lines.append(f"| {name} | {len(row['runs'])} | " + " | ".join(show(row, key) for key in NUMBERS) + " |")
    return (
        "# voc2012-mini\n\nMade by `python benchmarks/voc2012_mini.py`; numbers are of `voc2012_mini.json`. Mean over "
        f"{len(CLASSES)} classes of {results['val_images']} val images, {results['train_images']} train images, k = 5, "
        "± half of highest less lowest over seeds. Empty: not measured.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc2012-mini"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--heads", type=Path, default=Path("build/voc2012_mini"), help="folder for the trained heads")
    parser.add_argument("--rows", default="probe,transfer,paper,objective,overlap,images,localisation,finetune,scratch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    experiment = Experiment(options.data, options.cache, options.seeds, options.heads)
    path = options.results / "voc2012_mini.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    results |= {"train_images": len(experiment.train.images), "val_images": len(experiment.val.images)}
    groups = rows(experiment)
    for name in options.rows.split(","):
        start = time.perf_counter()
        for title, row in groups[name]().items():
            results["rows"][title] = row | {"torch": torch.__version__, "device": "cpu"}
        results["rows"][title]["group_s"] = round(time.perf_counter() - start, 1)
        results["rows"][title]["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        for file, text in ((path, json.dumps(results, indent=1) + "\n"), (path.with_suffix(".md"), table(results))):
            with written_whole(file, overwrite=True) as temporary:
                temporary.write_text(text)


if __name__ == "__main__":
    main()
