"""Transfer against its baselines on voc2012-mini, mean over its 12 well-filled classes; one row, or all, per run.

    python benchmarks/voc2012/mini.py --data ../shared/data/voc2012-mini --rows probe,transfer,localization

Each row is written to ``results/voc2012_mini.json`` as soon as it is done; ``voc2012_mini.md`` is its table. Features
are cached, so the first run takes the longest.
"""

import argparse
import functools
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from baselines import CLASSES, Row, fine_tuning, grad_cam, image_center, linear_probe

from densescore import DenseScorer, DenseScores
from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import LabeledImage, LabeledSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import ClassResult, evaluate_classes, k_curve, mean_of, score_set
from densescore.io.files import atomic_write
from densescore.models.head import HeadFile, load_head, save_head
from densescore.paper.from_scratch import train_from_scratch
from densescore.scoring.scorer import Context
from densescore.transfer.feature_cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.patch_labels import LabelRule, Overlap
from densescore.transfer.pipeline import cached_features, cached_scores, describe, head_file
from densescore.transfer.recipe import RECIPES, Recipe
from densescore.transfer.train_head import Round, train_heads
from densescore.transfer.training_set import gather

STAGES = "lite0-stages"
"""The default model of heads."""

KS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0)
COUNTS = (50, 10, 25, 100, 200)
"""Training images in the table of few images."""

FEW = (0.7, 1.0, 1.3)
"""Scales of the comparison with crops: 23 patches an image, for 787 crops take 25 s (results/imagenet_samples.json)."""

CONTEXTS: dict[str, tuple[Context, Context]] = {
    "crops in training and at test": ("patch", "patch"),
    "dense in training, crops at test": ("image", "patch"),
    "crops in training, dense at test": ("patch", "image"),
    "dense in training and at test": ("image", "image"),
}
ROWS = (
    "probe,transfer,labels,mixed,last,lite1,lite2,images,ladder,center,localization,paper,objective,overlap,"
    "flips,crops,finetune,scratch"
)
RESULTS = Path(__file__).parents[1] / "results"
NUMBERS = {
    "map": "mAP",
    "map_2007": "mAP, 2007 rule",
    "pointing": "pointing, mean of classes",
    "pointing_pooled": "pointing, all pairs",
    "pointing_response_map": "… at the response map's maximum, mean of classes",
    "pointing_response_map_pooled": "… all pairs",
    "located_map": "AP with location",
}

EARLIER = Recipe(
    objective="multilabel", scales=(0.7, 1.0, 1.3, 2.0, 2.8), test_scales=(0.7, 1.0, 1.3, 2.0, 2.8, 4.0), round=16_384,
    tolerance=0.05, max_rounds=4, image_rounds=6,
)  # fmt: skip
"""The default recipe of densescore 0.1; the rows without mirror images change one thing at a time in it."""


def ladder() -> dict[str, tuple[str, Recipe]]:
    """Model and recipe of each step from the paper's recipe, at the default's scales, to the default."""
    default, recipe = RECIPES["default"], RECIPES["paper"]
    recipe = replace(recipe, scales=default.scales, test_scales=default.test_scales)
    gentler = (
        "feature_dropout", "max_gradient", "image_rounds", "image_patches", "image_learning_rate", "patch_weight",
    )  # fmt: skip
    steps: dict[str, dict[str, Any]] = {
        "the paper's, at five scales and a sixth at test": {},
        "+ a patch may touch another class's object": {"rule": default.rule},
        "+ a sigmoid per class": {"objective": "multilabel"},
        "+ standardized features": {"standardize": True},
        "+ mirror images, shorter stages": {"flips": True, "round": 16_384, "tolerance": 0.05, "max_rounds": 4},
        "+ image labels": {"image_rounds": 6},
        "+ principal components": {"components": default.components, "width": default.width},
        "+ dropout of features, gentler on image labels": {name: getattr(default, name) for name in gentler},
        "+ four heads": {"heads": default.heads},
    }
    rungs = {}
    for title, changes in steps.items():
        recipe = replace(recipe, **changes)
        rungs[title] = "lite0", recipe
    rungs["+ the maps of three stages: the default"] = STAGES, recipe
    return rungs


class Experiment:
    """The data, the network and the cache that the rows share."""

    def __init__(self, data: Path, cache: Path, seeds: int, heads: Path) -> None:
        self.train, self.val = load_boxed(data, "train", need_positives=True), load_boxed(data, "val")
        self.folder, self.seeds, self.heads = cache, seeds, heads
        heads.mkdir(parents=True, exist_ok=True)

    def transfer(
        self,
        name: str,
        recipe: Recipe,
        *,
        model: str = STAGES,
        images: int | None = None,
        boxed: int | None = None,
        seeds: int | None = None,
        contexts: tuple[Context, Context] = ("image", "image"),
    ) -> Row:
        """Train and evaluate a head per seed; heads of the same recipe from an earlier run, and their numbers, stay.

        `images` and `boxed` as for `drawn`; `contexts` of training and test.
        """
        runs = []
        for seed in range(seeds or self.seeds):
            path = self.heads / f"{name.replace(' ', '-')}-{seed}.safetensors"
            numbers = path.with_suffix(".json")
            if not path.is_file() or not made_so(path, model, recipe):
                self.train_one(path, model, recipe, seed, self.drawn(seed, images, boxed), contexts[0])
                numbers.unlink(missing_ok=True)
            if not numbers.is_file():
                scorer = DenseScorer(path)
                score = cached_scores(scorer, FeatureCache(scorer, self.folder, context=contexts[1]))
                write_json(numbers, self.evaluate(score) | training_costs(path))
            runs.append(json.loads(numbers.read_text()))
            print(name, seed, {key: value for key, value in runs[-1].items() if key != "classes"}, flush=True)
        return summary(runs)

    def drawn(self, seed: int, images: int | None, boxed: int | None) -> LabeledSet:
        """`images` of the training images, drawn by the seed, `boxed` of them with boxes; None: all."""
        order = np.random.default_rng(seed).permutation(len(self.train.images))[:images].tolist()
        drawn = []
        for index in sorted(order):
            image = self.train.images[index]
            labels = LabeledImage(
                name=image.name, path=image.path, height=image.height, width=image.width, truth=image.truth
            )
            drawn.append(image if index in order[:boxed] else labels)
        return LabeledSet(self.train.name, self.train.classes, tuple(drawn))

    def train_one(
        self, path: Path, model: str, recipe: Recipe, seed: int, images: LabeledSet, context: Context = "image"
    ) -> float:
        """Train a head from cached features and write it; its last loss."""
        start, cpu_start = time.perf_counter(), time.process_time()
        scorer = DenseScorer(model, scales=recipe.scales)
        cache = FeatureCache(scorer, self.folder, context=context)
        features = cached_features(scorer, cache)
        patches = gather(images, features, recipe, seed)
        losses: list[Round] = []
        head = train_heads(patches, len(images.classes), recipe, seed, callback=losses.append)
        curve = [round(done.loss, 4) for done in losses]
        file = head_file(images, patches, head, recipe, seed, **describe(scorer, cache), losses=curve)
        save_timed(path, file, start, cpu_start)
        return curve[-1]

    def scratch(self, recipe: Recipe, seed: int = 0) -> Row:
        """NO PRETRAIN: lite0 from random weights, trained on crops."""
        path = self.heads / f"scratch-{seed}.safetensors"
        numbers = path.with_suffix(".json")
        if not path.is_file():
            start, cpu_start = time.perf_counter(), time.process_time()
            file = train_from_scratch(self.train, "lite0", recipe, seed, callback=lambda done: print(done, flush=True))
            save_timed(path, file, start, cpu_start)
        if not numbers.is_file():
            scorer = DenseScorer(path)
            write_json(numbers, self.evaluate(lambda image: scorer.score(image.path)) | training_costs(path))
        return summary([json.loads(numbers.read_text())])

    def evaluate(self, score: Callable[[BoxedImage], DenseScores]) -> Row:
        """All numbers of one head, at k = 5."""
        score = functools.cache(score)  # of each image, twice
        result = score_set(self.val, score, KS)
        rows = evaluate_classes(result, 5.0)
        by_mean = evaluate_classes(score_set(self.val, score, (5.0,), locate="response_map"), 5.0)
        fields = {"map": "ap", "map_2007": "ap_2007", "pointing": "pointing", "located_map": "located_ap"}
        return {
            **{key: mean_of(rows, field, CLASSES) for key, field in fields.items()},
            "pointing_pooled": pooled(rows),
            "pointing_response_map": mean_of(by_mean, "pointing", CLASSES),
            "pointing_response_map_pooled": pooled(by_mean),
            "k_curve": {f"{k:g}": value for k, value in k_curve(result, classes=CLASSES)},
            "classes": {
                row.label: {"ap": row.ap, "pointing": row.pointing, "images": row.positives}
                for row in rows
                if row.label in CLASSES
            },
        }


def made_so(path: Path, model: str, recipe: Recipe) -> bool:
    """Whether a head is of this model and recipe."""
    file = load_head(path)
    return file.backbone == model and file.training["recipe"] == json.loads(json.dumps(asdict(recipe)))


def save_timed(path: Path, file: HeadFile, start: float, cpu_start: float) -> None:
    """Write a head with the seconds since its training began, by the clock and of all cores together."""
    file.training["seconds"] = round(time.perf_counter() - start, 1)
    file.training["cpu_seconds"] = round(time.process_time() - cpu_start, 1)
    save_head(path, file, overwrite=True)


def training_costs(head: Path) -> Row:
    """Patches and seconds of a head's training."""
    training = load_head(head).training
    return {key: training.get(key) for key in ("patches", "seconds", "cpu_seconds")}


def pooled(rows: list[ClassResult]) -> float:
    """Pointing accuracy over all pairs of an image and a class it shows."""
    pointed = [(row.pointing, row.positives) for row in rows if row.label in CLASSES and row.pointing is not None]
    return sum(share * count for share, count in pointed) / sum(count for _, count in pointed)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def summary(runs: list[Row]) -> Row:
    """Mean and spread (highest less lowest) of the runs' numbers, and the runs."""
    numbers = {key: [run[key] for run in runs] for key in NUMBERS if key in runs[0]}
    means: Row = {key: {"mean": float(np.mean(v)), "spread": float(np.ptp(v))} for key, v in numbers.items()}
    return means | {"runs": runs}


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
    if row := results["rows"].get("transfer, default recipe"):
        means = {k: np.mean([run["k_curve"][k] for run in row["runs"]]) for k in row["runs"][0]["k_curve"]}
        lines += ["", f"| k | {' | '.join(means)} |", "| --- " * (1 + len(means)) + "|"]
        lines.append(f"| mAP, default recipe | {' | '.join(f'{value:.3f}' for value in means.values())} |")
    return (
        "# voc2012-mini\n\nMade by `python benchmarks/voc2012/mini.py`; numbers are of `voc2012_mini.json`. Mean over "
        f"{len(CLASSES)} classes of {results['val_images']} val images, {results['train_images']} train images, k = 5, "
        "± half of highest less lowest over seeds. Empty: not measured. A class is pointed at where "
        "`DenseScores.locate` says, or at its response map's maximum.\n\n" + "\n".join(lines) + "\n"
    )


def rows(experiment: Experiment) -> dict[str, Callable[[], dict[str, Row]]]:
    """Groups of rows by the name that ``--rows`` takes."""
    default, train, val = RECIPES["default"], experiment.train, experiment.val
    plain = replace(EARLIER, flips=False)  # half of the patches; the base of rows that change one thing

    unlabeled: Row = {"objective": "softmax", "image_rounds": 0}

    def vary(changes: dict[str, Row]) -> dict[str, Row]:
        recipes = {f"no mirror images, {name}": replace(plain, **change) for name, change in changes.items()}
        return {name: experiment.transfer(name, recipe, model="lite0", seeds=1) for name, recipe in recipes.items()}

    return {
        "probe": lambda: {
            "linear probe, center crop": summary([linear_probe(train, val, whole=False)[0]]),
            "linear probe, whole image": summary([linear_probe(train, val, whole=True)[0]]),
        },
        "transfer": lambda: {"transfer, default recipe": experiment.transfer("default", default)},
        "paper": lambda: {"transfer, paper's recipe": experiment.transfer("paper", RECIPES["paper"], model="lite0")},
        "objective": lambda: vary(
            {
                f"{objective}, {'' if rounds else 'no '}image labels": {"objective": objective, "image_rounds": rounds}
                for objective in ("softmax", "multilabel")
                for rounds in (0, EARLIER.image_rounds)
            }
        ),
        "overlap": lambda: vary(
            {
                f"softmax, no image labels, overlap {overlap}": {**unlabeled, "rule": LabelRule(overlap=overlap)}
                for overlap in get_args(Overlap)
            }
        ),
        "labels": lambda: {"labels only, default recipe": experiment.transfer("labels", default, boxed=0)},
        "mixed": lambda: {"boxes on 50 images, labels on the others": experiment.transfer("mixed", default, boxed=50)},
        **{f"images{count}": functools.partial(few_images, experiment, count) for count in COUNTS},
        "last": lambda: {
            "the last stage alone, boxes": experiment.transfer("last boxes", default, model="lite0", seeds=1),
            "the last stage alone, labels": experiment.transfer(
                "last labels", default, model="lite0", boxed=0, seeds=1
            ),
        },
        "lite1": lambda: {"lite1-stages, boxes": experiment.transfer("lite1", default, model="lite1-stages", seeds=1)},
        "lite2": lambda: {"lite2-stages, boxes": experiment.transfer("lite2", default, model="lite2-stages")},
        "ladder": lambda: {
            f"ladder, {title}": experiment.transfer(f"ladder {number}", recipe, model=model)
            for number, (title, (model, recipe)) in enumerate(ladder().items())
        },
        "center": lambda: {"always the image's center": summary([image_center(val)])},
        "localization": lambda: {"Grad-CAM on the linear probe": summary([grad_cam(train, val)])},
        "flips": lambda: {"without mirror images": experiment.transfer("without mirror images", plain, model="lite0")},
        "crops": lambda: {
            f"{', '.join(f'{scale:g}' for scale in FEW)} only, no mirror images: {title}": experiment.transfer(
                title, replace(plain, scales=FEW, test_scales=None), model="lite0", seeds=1, contexts=contexts
            )
            for title, contexts in CONTEXTS.items()
        },
        "finetune": lambda: {"full fine-tuning of whole images": summary([fine_tuning(train, val)])},
        "scratch": lambda: {"NO PRETRAIN: the same network from random weights": experiment.scratch(default)},
    }


def few_images(experiment: Experiment, count: int) -> dict[str, Row]:
    """Boxes, labels, and a linear probe, each on the same drawn images."""
    default = RECIPES["default"]
    return {
        f"{count} images, boxes": experiment.transfer(f"images {count} boxes", default, images=count),
        f"{count} images, labels": experiment.transfer(f"images {count} labels", default, images=count, boxed=0),
        f"{count} images, linear probe": summary(
            [linear_probe(experiment.drawn(seed, count, 0), experiment.val)[0] for seed in range(experiment.seeds)]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc2012-mini"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--heads", type=Path, default=Path("build/voc2012_mini"), help="folder of trained heads")
    parser.add_argument("--rows", default=ROWS, help="groups of rows, with commas between; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    experiment = Experiment(options.data, options.cache, options.seeds, options.heads)
    path = options.results / "voc2012_mini.json"
    groups = rows(experiment)
    for name in options.rows.replace("images", ",".join(f"images{count}" for count in COUNTS)).split(","):
        start = time.perf_counter()
        group = groups[name]()
        results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
        results |= {"train_images": len(experiment.train.images), "val_images": len(experiment.val.images)}
        for title, row in group.items():
            results["rows"][title] = row | {"torch": torch.__version__, "device": "cpu"}
        results["rows"][title]["group_s"] = round(time.perf_counter() - start, 1)
        results["rows"][title]["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        write_json(path, results)
        path.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()
