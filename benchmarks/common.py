"""Shared by the benchmarks: arguments, JSON records with the machine, Markdown tables."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densescore.bench.run import describe_machine
from densescore.io.files import atomic_write
from densescore.io.images import Pixels

RESULTS = Path(__file__).parent / "results"


def parser(about: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring as it stands."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.is_file() else default


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text)


def write_json(path: Path, record: Any) -> None:
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_record(path: Path, **record: Any) -> None:
    """Write numbers with the machine that they were measured on."""
    write_json(path, {**record, "machine": describe_machine()})


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    lines = (headings, ["---"] * len(headings), *rows)
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def noise_image() -> Pixels:
    """Random pixels in the size of a VOC photograph, 500×375."""
    return np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
