"""A benchmark's result as files: JSON and CSV."""

import csv
import json
from pathlib import Path
from typing import Any


def write_json(result: dict[str, Any], path: Path) -> None:
    """All that was measured, every round."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def write_csv(result: dict[str, Any], path: Path) -> None:
    """The contenders' table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("contender", "seconds", "patches_per_second", "times_densescore", "lowest", "highest"))
        for name, row in result["contenders"].items():
            spread = row["times_densescore_spread"]
            writer.writerow((name, row["seconds"], row["patches_per_second"], row["times_densescore"], *spread))
