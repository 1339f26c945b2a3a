"""The numbers of voc2012_mini.py's rows: their mean and spread over seeds, and the Markdown table."""

from typing import Any

import numpy as np
from voc2012_baselines import CLASSES, Row

NUMBERS = {
    "map": "mAP",
    "map_2007": "mAP, 2007 rule",
    "pointing": "pointing, mean of classes",
    "pointing_pooled": "pointing, all pairs",
    "pointing_map_maximum": "… at the map's maximum, mean of classes",
    "pointing_map_maximum_pooled": "… all pairs",
    "located_map": "AP with location",
}


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
    return (
        "# voc2012-mini\n\nMade by `python benchmarks/voc2012_mini.py`; numbers are of `voc2012_mini.json`. Mean over "
        f"{len(CLASSES)} classes of {results['val_images']} val images, {results['train_images']} train images, k = 5, "
        "± half of highest less lowest over seeds. Empty: not measured. A class is pointed at where "
        "`DenseScores.locate` says, or at its response map's maximum.\n\n" + "\n".join(lines) + "\n" + by_k(results)
    )


def by_k(results: dict[str, Any]) -> str:
    """MAP of the default recipe at each exponent of the image score, mean over seeds, as Markdown."""
    row = results["rows"].get("transfer, default recipe")
    if row is None:
        return ""
    means = {k: np.mean([run["k_curve"][k] for run in row["runs"]]) for k in row["runs"][0]["k_curve"]}
    return (
        f"\n| k | {' | '.join(means)} |\n{'| --- ' * (1 + len(means))}|\n"
        f"| mAP, default recipe | {' | '.join(f'{value:.3f}' for value in means.values())} |\n"
    )
