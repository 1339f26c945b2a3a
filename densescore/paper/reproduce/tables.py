"""What the paper reports, and what each of its rows takes: Tables 1, 2 and 3 of Oquab et al. (CVPR 2014)."""

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["transfer", "scratch", "retrained"]
"""Train FCa and FCb alone; the whole network, from random weights; or FC6 with them."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Attributes:
        name: as in the paper.
        source: of `SOURCES`; None for no pre-training.
        method: see `Method`.
        paper: mean AP in per cent.
    """

    name: str
    source: str | None
    method: Method
    paper: float


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: what it measures.
        data: of the paper's data: ``"voc07"`` or ``"voc12"``.
        year: of the VOC folder.
        train: the set to train on.
        test: the set to measure on.
        note: how that differs from the paper; empty if it does not.
        rows: the methods.
    """

    title: str
    data: Literal["voc07", "voc12"]
    year: str
    train: str
    test: str
    note: str
    rows: tuple[PaperRow, ...]


SOURCES = {"PRE-1000C": "pre-1000c", "PRE-1000R": "pre-1000r", "PRE-1512": "pre-1512"}
"""The paper's source tasks: names of `densescore.paper.pretrain.source_classes.PRESETS`."""

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
    """A table beside the paper's numbers.

    Args:
        number: 1, 2 or 3.
        measured: mean AP in [0, 1] by row; what is absent is left empty.
        remark: said above it.

    Example:
        >>> print(as_markdown(1, {"PRE-1000C": 0.5}))
        # Table 1: VOC 2007 classification, AP by the rule of 2007
        <BLANKLINE>
        Trained on VOC2007 trainval, measured on test. Mean AP in per cent.
        <BLANKLINE>
        | | here | paper |
        | --- | --- | --- |
        | PRE-1000C | 50.0 | 77.7 |
        <BLANKLINE>
    """
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
