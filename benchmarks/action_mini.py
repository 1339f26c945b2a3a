"""Action recognition on action-mini: does transfer help, and retraining its last stage? Three seeds.

    python benchmarks/action_mini.py --data ../shared/data/action-mini

Each row is written to ``results/action_mini.json`` as soon as it is done; ``action_mini.md`` is its table.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, markdown, parser, read_json, write_json, write_text
from numpy.typing import NDArray

from densescore import DenseScorer
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.models.head import load_head, save_head
from densescore.models.registry import load_classifier
from densescore.paper.actions.evaluation import evaluate_persons, mean_ap
from densescore.paper.actions.network import ActionRecipe, Retrain
from densescore.paper.actions.training import fit, labels_of, new_network, read_patches, run_frozen, score_persons
from densescore.paper.actions.voc import ActionSet, as_boxes, read_actions
from densescore.transfer.feature_cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import RECIPES

Row = dict[str, Any]
SMALL = 96
"""Side of the patches on which NO PRETRAIN is affordable on one core; transfer is measured at this size as well."""

PERSON_ROWS: dict[str, tuple[str, Retrain, int, int, float, float]] = {
    "scratch": ("NO PRETRAIN", "all", SMALL, 20, 1e-3, 1.0),
    "frozen-small": ("transfer, frozen, small", "none", SMALL, 30, 0.0, 1.0),
    "retrained-small": ("transfer, last stage retrained, small", "last", SMALL, 30, 2e-4, 1.0),
    "frozen-small-half": ("transfer, frozen, small, half the persons", "none", SMALL, 30, 0.0, 0.5),
    "retrained-small-half": ("transfer, last stage retrained, small, half the persons", "last", SMALL, 30, 2e-4, 0.5),
    "frozen-small-quarter": ("transfer, frozen, small, a quarter of them", "none", SMALL, 30, 0.0, 0.25),
    "retrained-small-quarter": ("transfer, last stage retrained, small, a quarter", "last", SMALL, 30, 2e-4, 0.25),
    "frozen": ("transfer, frozen", "none", 224, 30, 0.0, 1.0),
    "retrained": ("transfer, last stage retrained", "last", 224, 30, 2e-4, 1.0),
    "retrained-slow": ("transfer, last stage retrained at a quarter of the rate", "last", 224, 30, 5e-5, 1.0),
}
"""By the name that ``--rows`` takes: title; retrained layers, side of the patches, epochs, learning rate of the
retrained layers, share of the training persons."""

BASES = {key: key.replace("retrained", "frozen").removesuffix("-slow") for key in PERSON_ROWS if "retrained" in key}
"""What a row of retraining is compared with, person by person."""


def share_of(targets: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Indices of a share of the persons of each action, at least one of each, drawn by the seed."""
    draw = np.random.default_rng(seed)
    persons = [draw.permutation(np.flatnonzero(targets.numpy() == action)) for action in targets.unique().tolist()]
    return torch.from_numpy(np.sort(np.concatenate([part[: max(1, round(share * len(part)))] for part in persons])))


def persons(
    sets: tuple[ActionSet, ActionSet], retrain: Retrain, side: int, epochs: int, rate: float, share: float, seeds: range
) -> tuple[Row, NDArray[np.float64]]:
    """Train on a share of the persons and rank the test persons; the row, and scores ``[seeds, N, outputs]``."""
    train, val = sets
    labels, targets, several = labels_of(train)
    assert not several.any(), "action-mini has no person of several actions"
    recipe = ActionRecipe(retrain=retrain, epochs=epochs, retrained_rate=rate)
    weights = None if retrain == "all" else "default"
    patches = [read_patches(each, side, recipe.margin) for each in sets]
    frozen: list[torch.Tensor] = []  # run once for all seeds
    runs: list[Row] = []
    scores = []
    for seed in seeds:
        start = time.perf_counter()
        torch.manual_seed(seed)  # of a network without weights
        classifier = load_classifier("lite0", weights=weights, patch_size=side)
        network = new_network(classifier, len(labels), recipe, seed)
        frozen = frozen or [run_frozen(network, part) for part in patches]
        losses: list[float] = []
        taught = share_of(targets, share, seed)
        fit(network, frozen[0][taught], targets[taught], recipe, seed, lambda _, loss: losses.append(loss))  # noqa: B023
        scores.append(score_persons(network, frozen[1]))
        rows = evaluate_persons(val, scores[-1], labels)
        of_train = evaluate_persons(train, score_persons(network, frozen[0]), labels)
        seconds = round(time.perf_counter() - start, 1)
        runs.append({"seed": seed, "map": mean_ap(rows), "actions": {row.action: row.ap for row in rows}})
        runs[-1] |= {"persons": len(taught), "train_map": mean_ap(of_train), "last_loss": losses[-1], "wall_s": seconds}
        print({key: value for key, value in runs[-1].items() if key != "actions"}, flush=True)
    row = {"retrain": retrain, "patch": side, "epochs": epochs, "retrained_rate": rate, "runs": runs}
    return row, np.stack(scores)


def gain(val: ActionSet, ours: NDArray[np.float64], theirs: NDArray[np.float64], draws: int = 1000) -> Row:
    """Mean AP of `ours` less `theirs`, scores ``[seeds, N, outputs]``, and the middle 95 % of a paired bootstrap.

    `draws` test sets of the same size are drawn from the persons with replacement.
    """

    def difference(indices: NDArray[np.int64]) -> float:
        drawn = ActionSet(val.name, val.actions, tuple(val.persons[index] for index in indices))
        rows = ([evaluate_persons(drawn, run[indices], val.actions) for run in part] for part in (ours, theirs))
        of_ours, of_theirs = (np.mean([mean_ap(row) for row in part]) for part in rows)
        return float(of_ours - of_theirs)

    draw = np.random.default_rng(0)
    count = len(val.persons)
    spread = [difference(draw.integers(count, size=count)) for _ in range(draws)]
    low, high = np.quantile(spread, (0.025, 0.975)).tolist()
    return {"map": difference(np.arange(count)), "low": low, "high": high}


def sliding(sets: tuple[ActionSet, ActionSet], cache: Path, heads: Path, scales: tuple[float, ...]) -> Row:
    """A head for dense scoring, trained with the persons' boxes and tested without: AP of images, and pointing."""
    train, val = (as_boxes(actions) for actions in sets)
    path = heads / "sliding-0.safetensors"
    if not path.is_file():
        recipe = replace(RECIPES["default"], scales=scales, test_scales=None, flips=False)
        scorer = DenseScorer("lite0", scales=scales)
        save_head(path, train_model(train, scorer, FeatureCache(scorer, cache), recipe, seed=0))
    scorer = DenseScorer(path)
    result = score_set(val, cached_scores(scorer, FeatureCache(scorer, cache)), (scorer.k,))
    rows = evaluate_classes(result, scorer.k)
    run: Row = {"seed": 0, "map": mean_of(rows, "ap"), "pointing": mean_of(rows, "pointing")}
    run["actions"] = {row.label: row.ap for row in rows}
    print(run, flush=True)
    return {"scales": scales, "patches": load_head(path).training["patches"], "runs": [run]}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for name, row in results["rows"].items():
        values = [run["map"] for run in row["runs"]]
        fitted = [run["train_map"] for run in row["runs"] if "train_map" in run]
        pointing = [run["pointing"] for run in row["runs"] if "pointing" in run]
        numbers = [f"{np.mean(part):.3f}" if part else "" for part in (fitted, pointing)]
        spread = f"{min(values):.3f}, {max(values):.3f}" if len(values) > 1 else ""
        gained = row.get("gain")
        over = f"{gained['map']:+.3f} ({gained['low']:+.3f} … {gained['high']:+.3f})" if gained else ""
        lines.append((name, row.get("patch", ""), len(values), f"{np.mean(values):.3f}", spread, over, *numbers))
    headings = (
        "",
        "patch",
        "seeds",
        "mAP",
        "lowest, highest",
        "over frozen (95 %)",
        "mAP of the training set",
        "pointing",
    )
    return (
        "# action-mini\n\nMade by `python benchmarks/action_mini.py`; numbers are of `action_mini.json`. "
        f"{results['train_persons']} training and {results['val_persons']} test persons, {results['actions']} actions, "
        "lite0. Mean AP over actions; persons are ranked, but in the sliding-window row images, no box given. *Over "
        "frozen*: the difference to the frozen row of the same patch and persons, and between which values the middle "
        "95 % of test sets drawn from these persons put it.\n\n" + markdown(headings, lines)
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/action-mini"))
    arguments.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    arguments.add_argument("--heads", type=Path, default=Path("build/action_mini"), help="folder for the trained heads")
    arguments.add_argument("--rows", default=",".join([*PERSON_ROWS, "sliding"]))
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--results", type=Path, default=RESULTS)
    options = arguments.parse_args()
    sets = (read_actions(options.data, "train"), read_actions(options.data, "val"))
    titles = {key: title for key, (title, *_) in PERSON_ROWS.items()} | {"sliding": "sliding window"}
    path = options.results / "action_mini.json"
    results: dict[str, Any] = read_json(path, {"rows": {}})
    results |= {"train_persons": len(sets[0].persons), "val_persons": len(sets[1].persons)}
    results |= {"actions": len(sets[0].actions)}
    for key in options.rows.split(","):
        print(titles[key], flush=True)
        if key == "sliding":
            row = sliding(sets, options.cache, options.heads, (1.0, 1.6, 2.4))
        else:
            row, scores = persons(sets, *PERSON_ROWS[key][1:], seeds=range(options.seeds))
            options.heads.mkdir(parents=True, exist_ok=True)
            np.save(options.heads / f"{key}.npy", scores)
            base = options.heads / f"{BASES.get(key)}.npy"
            if key in BASES and base.is_file():
                row["gain"] = gain(sets[1], scores, np.load(base))
                print(row["gain"], flush=True)
        done = results["rows"] | {titles[key]: row | {"torch": torch.__version__, "device": "cpu"}}
        results["rows"] = {title: done[title] for title in titles.values() if title in done}
        write_json(path, results)
        write_text(path.with_suffix(".md"), table(results))


if __name__ == "__main__":
    main()
