"""Tables 1, 2 and 3 of Oquab et al. (CVPR 2014): the rows, the paper's numbers, and tables of both."""

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["transfer", "scratch", "retrained"]
"""Train FCa and FCb alone; the whole network from random weights; or FC6, FCa and FCb."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table."""

    name: str
    source: str | None  # of `SOURCES`; None: no pre-training
    method: Method
    paper: float  # mean AP in per cent


@dataclass(frozen=True)
class PaperTable:
    """A table."""

    title: str
    data: Literal["voc07", "voc12"]
    year: str  # name of VOC's folder
    train: str
    test: str
    note: str  # how the sets differ from the paper's, or ""
    rows: tuple[PaperRow, ...]


SOURCES = {"PRE-1000C": "pre-1000c", "PRE-1000R": "pre-1000r", "PRE-1512": "pre-1512"}
"""The paper's source tasks, by their names in `densescore.paper.pretrain.source_classes.PRESETS`."""

_NO_LABELS = (
    "The paper's numbers are of the test set, whose labels only VOC's server has; here networks are trained on train "
    "and measured on val."
)

TABLES = {
    1: PaperTable(
        "VOC 2007 classification, AP by the rule of 2007", "voc07", "VOC2007", "trainval", "test", "",
        (PaperRow("PRE-1000C", "PRE-1000C", "transfer", 77.7),),
    ),
    2: PaperTable(
        "VOC 2012 classification", "voc12", "VOC2012", "train", "val", _NO_LABELS,
        (
            PaperRow("NO PRETRAIN", None, "scratch", 70.9),
            PaperRow("PRE-1000C", "PRE-1000C", "transfer", 78.7),
            PaperRow("PRE-1000R", "PRE-1000R", "transfer", 76.3),
            PaperRow("PRE-1512", "PRE-1512", "transfer", 82.8),
        ),
    ),
    3: PaperTable(
        "VOC 2012 action classification", "voc12", "VOC2012", "train", "val", _NO_LABELS,
        (
            PaperRow("NO PRETRAIN", None, "scratch", 49.7),
            PaperRow("PRE-1512", "PRE-1512", "transfer", 68.4),
            PaperRow("PRE-1512U", "PRE-1512", "retrained", 70.2),
        ),
    ),
}  # fmt: skip


def as_markdown(number: int, measured: dict[str, float], remark: str = "") -> str:
    """A table of mean AP in [0, 1] by row, next to the paper's numbers; rows without a number stay empty."""
    table = TABLES[number]
    about = f"Trained on {table.year} {table.train}, measured on {table.test}. Mean AP in per cent."
    lines = [f"# Table {number}: {table.title}", "", " ".join(filter(None, (remark, about, table.note))), ""]
    lines += ["| | here | paper |", "| --- | --- | --- |"]
    for row in table.rows:
        here = f"{100 * measured[row.name]:.1f}" if row.name in measured else ""
        lines.append(f"| {row.name} | {here} | {row.paper} |")
    return "\n".join(lines) + "\n"


def as_record(number: int, measured: dict[str, float]) -> dict[str, Any]:
    """A table as plain JSON values."""
    rows = [{"row": row.name, "here": measured.get(row.name), "paper": row.paper / 100} for row in TABLES[number].rows]
    return {"table": number, "title": TABLES[number].title, "rows": rows}
