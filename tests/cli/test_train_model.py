"""Which network a head is trained on where the command does not say."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "lite0-stages"),
        (["--recipe", "paper"], "lite0"),
        (["--recipe", "paper", "--model", "lite0-stages"], "lite0-stages"),
        (["--model", "lite0"], "lite0"),
    ],
)
def test_the_paper_s_recipe_is_on_the_last_stage_and_the_default_on_three(
    options: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / label / "0.png")

    def told(_: Any, scorer: DenseScorer, *rest: Any, **more: Any) -> None:
        raise DensescoreError(f"asked for {scorer.name}.")

    monkeypatch.setattr("densescore.transfer.pipeline.train_model", told)
    out = tmp_path / "head.safetensors"
    arguments = ["--data", tmp_path / "photos", "-o", out, "--cache", tmp_path / "cache", *options]
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 2
    assert f"asked for {expected}." in result.stderr
