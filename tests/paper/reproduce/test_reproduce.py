import json
from pathlib import Path

import pytest
import torch

from densescore.models.head import load_head
from densescore.models.registry import load_classifier
from densescore.models.weights import read_weights
from densescore.paper.actions.network import load_actions
from densescore.paper.reproduce.chain import PAPER
from densescore.paper.reproduce.tables import SOURCES, TABLES, as_markdown, as_record
from tests.cli.runner import refuse, succeed


def test_smoke_runs_every_step_and_resumes_from_its_files(tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = ["reproduce", "--smoke", "--device", "cpu", "--out", str(work), "--json"]
    result = succeed(*command)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["table"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["smoke"]
        names = [row.name for row in TABLES[record["table"]].rows]
        assert [row["row"] for row in record["rows"]] == names
        assert all(0 < row["here"] <= 1 for row in record["rows"])
        written = (work / f"table{record['table']}.md").read_text()
        assert "the numbers mean nothing" in written
        assert all(name in written for name in names)
        assert json.loads((work / f"table{record['table']}.json").read_text())["rows"] == record["rows"]
    # Each source has its own classes and width; each head came from the network that its row names.
    sources = {name: load_classifier("krizhevsky", weights=work / f"{name.lower()}.safetensors") for name in SOURCES}
    assert {name: len(source.labels) for name, source in sources.items()} == {
        "PRE-1000C": 2, "PRE-1000R": 2, "PRE-1512": 3,
    }  # fmt: skip
    assert load_head(work / "table2-pre-1512.safetensors").head.fca.in_features == 32
    assert load_head(work / "table2-pre-1000r.safetensors").head.fca.in_features == 24
    assert "features.0.weight" in load_head(work / "table2-no-pretrain.safetensors").backbone_weights
    retrained, *_ = load_actions(work / "table3-pre-1512u.safetensors", work / "pre-1512.safetensors")
    fc6 = sources["PRE-1512"].module.state_dict()["classifier.0.weight"]
    trained = retrained.retrained.state_dict()["0.weight"]
    assert trained.shape == fc6.shape
    assert not torch.equal(trained, fc6)
    # Only missing files are made again: a lost number is measured again, without another training
    (work / "table1-pre-1000c.json").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    weights = read_weights(work / "pre-1000c.safetensors")
    again = succeed(*command, "--table", "1")
    assert json.loads(again.stdout)["rows"] == records[0]["rows"]
    assert {path: path.stat().st_mtime_ns for path in work.glob("*.safetensors")} == stamps
    assert "pre-train on" not in again.stderr
    assert all(
        torch.equal(value, weights[name]) for name, value in read_weights(work / "pre-1000c.safetensors").items()
    )

    refuse(*command, "--seed", "1", message="holds files of another seed")


def test_the_papers_numbers_and_sizes() -> None:
    numbers = {(number, row.name): row.paper for number, table in TABLES.items() for row in table.rows}
    assert numbers == {
        (1, "PRE-1000C"): 77.7,
        (2, "NO PRETRAIN"): 70.9, (2, "PRE-1000C"): 78.7, (2, "PRE-1000R"): 76.3, (2, "PRE-1512"): 82.8,
        (3, "NO PRETRAIN"): 49.7, (3, "PRE-1512"): 68.4, (3, "PRE-1512U"): 70.2,
    }  # fmt: skip
    assert PAPER.widths == {"PRE-1000C": 4096, "PRE-1000R": 4096, "PRE-1512": 6144}
    assert PAPER.classes["PRE-1000R"] == "random:1000:0"
    source = PAPER.source
    assert (source.learning_rate, source.divisions, source.momentum, source.weight_decay) == (0.01, 3, 0.9, 5e-4)


def test_rows_without_a_number_stay_empty() -> None:
    text = as_markdown(2, {"PRE-1000C": 0.5})
    assert "| PRE-1000C | 50.0 | 78.7 |" in text
    assert "| PRE-1512 |  | 82.8 |" in text
    assert "whose labels only VOC's server has" in text
    assert as_record(3, {})["rows"][0] == {"row": "NO PRETRAIN", "here": None, "paper": pytest.approx(0.497)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "4"], "--table: expected 1, 2 or 3, got 4"),
        (["--table", "1"], "table 1 needs --imagenet, --voc07"),
        (["--smoke", "--voc12", "x"], "generates its own images"),
    ],
)
def test_missing_and_contradictory_options(options: list[str], message: str) -> None:
    refuse("reproduce", *options, message=message)
