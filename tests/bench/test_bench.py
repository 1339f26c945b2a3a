"""The benchmark: what differs is not timed, what is not installed is said, and the numbers add up."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from densescore.bench import contenders
from densescore.bench.case import CONTENDERS, Case
from densescore.bench.measure import Timing, deviation, direct_flop
from densescore.cli.bench import app
from densescore.geometry import Pyramid
from densescore.network.surgery import to_dense
from tests.conftest import Toy

SMALL = ["--model", "lite0", "--scales", "1,1.2", "--rounds", "2", "--crop-cells", "3", "--runtime", "torch"]


def run(tmp_path: Path, *arguments: str) -> dict[str, object]:
    out = tmp_path / "result.json"
    done = CliRunner().invoke(app, [*SMALL, "--json", str(out), "--overwrite", *arguments])
    assert done.exit_code == 0, done.output
    result: dict[str, object] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "there.csv"], "there.csv: exists already"),
        (["--json", "new.json", "--plot", "there.csv"], "there.csv: exists already"),
        (["--json", "there.csv", "--image", "there.csv", "--overwrite"], "this run needs there.csv"),
        (["--json", "same", "--csv", "./same"], "two of them name the same file"),
    ],
)
def test_where_results_go_is_checked_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine")
    monkeypatch.setattr("densescore.bench.run.run", lambda _: pytest.fail("timed"))
    done = CliRunner().invoke(app, [*SMALL, *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert Path("there.csv").read_text() == "mine"


def test_contenders_are_equal_then_timed_in_turn(tmp_path: Path) -> None:
    result = run(tmp_path, "--contenders", "crops,dense-modules,dense-timm")
    rows = result["contenders"]
    assert isinstance(rows, dict)
    assert set(rows) == {"crops", "dense-modules", "dense-timm", "densescore"}
    assert all(len(row["seconds_all"]) == 2 and min(row["seconds_all"]) > 0 for row in rows.values())
    assert rows["densescore"]["times_densescore"] == 1
    stages = result["stages"]
    assert isinstance(stages, dict)
    assert {"pyramid", "trunk", "head", "image scores"} <= set(stages)
    assert result["left_out"] == {}
    overhead, share = result["file_to_answer_over_engine"], result["share_of_peak"]
    assert isinstance(overhead, dict)
    assert overhead["spread"][0] > 1
    assert isinstance(share, float)
    assert share > 0


def test_a_contender_that_gives_other_scores_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(subject: contenders.Subject, dense: bool) -> contenders.Run:
        return lambda pixels: subject.form(dense)(pixels).roll(1, dims=1)

    monkeypatch.setitem(contenders.RUNTIMES, "dense-openvino", lying)
    result = run(tmp_path, "--contenders", "crops,dense-openvino")
    assert isinstance(result["left_out"], dict)
    assert "its scores differ by" in result["left_out"]["dense-openvino"]
    assert isinstance(result["contenders"], dict)
    assert "dense-openvino" not in result["contenders"]


def test_what_cannot_run_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    result = run(tmp_path, "--contenders", "crops,dense-onnxruntime")
    assert isinstance(result["left_out"], dict)
    assert "not installed" in result["left_out"]["dense-onnxruntime"]


def test_timms_pooling_is_for_timms_networks(tmp_path: Path) -> None:
    result = run(tmp_path, "--classes", "5", "--contenders", "dense-timm")
    assert isinstance(result["left_out"], dict)
    assert "timm's networks" in result["left_out"]["dense-timm"]


def test_unknown_contenders_are_refused() -> None:
    done = CliRunner().invoke(app, ["--contenders", "magic"])
    assert done.exit_code == 2
    assert "unknown magic" in done.stderr


def test_ratios_are_round_by_round() -> None:
    assert Timing((2.0, 9.0)).ratios_to(Timing((1.0, 3.0))) == [2.0, 3.0]
    assert deviation(torch.tensor([0.5, 0.0]), torch.tensor([0.4, 0.1])) == pytest.approx(0.25)


def test_curves_grow(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    curves = ["--growth", "400", "--resolutions", "0.2,0.05", "--plot", str(picture)]
    result = run(tmp_path, "--contenders", "", *curves)
    growth, resolution = result["growth"], result["resolution"]
    assert isinstance(growth, list)
    assert isinstance(resolution, list)
    assert {row["way"] for row in growth} == {"more scales", "larger images"}  # a longer image has thousands
    patches = [row["patches"] for row in growth]
    assert patches == sorted(patches)
    assert 4 <= patches[0] < patches[-1] <= 400
    assert all(row["seconds"] > 0 for row in growth)
    assert [row["megapixels"] for row in resolution] == [0.05, 0.2]
    assert {"decode", "pyramid", "trunk", "head"} == set(resolution[0]["stages"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_flop_are_counted_by_the_definition() -> None:
    """Toy's stride, kernel and width are small enough to count by hand: one patch, one window."""
    network = to_dense(Toy(), 20)
    pyramid = Pyramid.of(20, 20, scales=(1.0,), patch=20, stride=network.stride)
    subject = contenders.Subject(Toy(), network, [torch.zeros(1, 3, 20, 20)], pyramid, torch.arange(1))
    with FlopCounterMode(display=False) as counter:
        Toy()(torch.zeros(1, 3, 20, 20))
    assert direct_flop(subject) == counter.get_total_flops() > 0


def test_every_contender_that_is_named_can_be_built() -> None:
    assert tuple(contenders.RUNTIMES) == CONTENDERS


def test_a_case_names_the_command_that_runs_it() -> None:
    words = Case("alexnet", None, 21, contenders=("crops", "dense-timm")).command.split()
    assert words[:7] == ["densescore-bench", "--model", "alexnet", "--weights", "random", "--classes", "21"]
    assert words[-1] == "crops,dense-timm"


def test_batches_are_timed_against_one_at_a_time(tmp_path: Path) -> None:
    plot = tmp_path / "batches.png"
    result = run(tmp_path, "--contenders", "", "--batch", "3", "--scales", "1", "--rounds", "1", "--plot", str(plot))
    rows = result["batches"]
    assert isinstance(rows, list)
    assert [row["batch"] for row in rows] == [1, 2, 3]
    assert rows[0]["times_one"] == 1
    assert all(
        row["times_one"] == pytest.approx(row["images_per_second"] / rows[0]["images_per_second"]) for row in rows
    )
    assert plot.stat().st_size > 10_000
