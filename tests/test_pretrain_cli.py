import json
from pathlib import Path

from typer.testing import CliRunner

from densescore.cli import app
from densescore.pretrain.source_classes import ilsvrc

runner = CliRunner()


def test_source_classes_are_counted_and_written(tmp_path: Path) -> None:
    out = tmp_path / "classes.txt"
    result = runner.invoke(app, ["source-classes", "--classes", "ilsvrc,n02834778", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "classes": 1001,
        "added": [{"term": "ilsvrc", "classes": 1000}, {"term": "n02834778", "classes": 1}],
        "unlike_paper": [],
    }
    assert out.read_text().split() == sorted([*ilsvrc(), "n02834778"])
    again = runner.invoke(app, ["source-classes", "--classes", "ilsvrc", "--out", str(out)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    wrong = runner.invoke(app, ["source-classes", "--classes", "subtree:furniture", "--wordnet", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "data.noun: no such file" in wrong.stderr
