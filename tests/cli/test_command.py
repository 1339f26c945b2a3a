"""Groups of options, one-line errors, interrupts, exit statuses, and defaults in the help."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
from cyclopts import Parameter

import densescore.jobs.many.table  # noqa: F401  # before the scorer that its annotations name is replaced
from densescore.cli.main import app
from densescore.cli.options import NOT_AN_OPTION, ClassOptions, RuleOptions, ScorerOptions
from densescore.cli.program import make_app
from densescore.cli.train import train
from densescore.errors import DensescoreError, DensescoreWarning
from densescore.transfer.patch_labels import LabelRule
from densescore.transfer.recipe import RECIPES
from tests.cli.runner import CliRunner, command_names, options_of


@Parameter(name="*")
@dataclass(frozen=True)
class Group:
    size: Annotated[int, Parameter(("--size", "-s"), help="Size.")] = 3
    name: Annotated[str, Parameter(help="Name.")] = "x"
    hidden: str = "h"


@dataclass(frozen=True)
class Variant(Group):
    size: Annotated[int, Parameter(("--size", "-s"), help="Size.")] = 5
    hidden: Annotated[str, NOT_AN_OPTION] = "default"


CALLS: list[Any] = []
small_app = make_app("small")


@small_app.default
def small(*, group: Variant = Variant(), fail: str = "") -> None:
    """A program."""
    CALLS.append(group)
    if fail == "error":
        raise DensescoreError("[/x] is wrong")
    if fail == "system":
        raise OSError(98, "address in use")
    if fail == "file":
        raise OSError(36, "File name too long", "/x/aaa")
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail == "warning":
        warnings.warn("photos: 1 picture left out", DensescoreWarning, stacklevel=2)
        warnings.warn("of another library", UserWarning, stacklevel=2)


def test_warning_is_one_line() -> None:
    with pytest.warns(UserWarning, match="of another library") as others:
        result = CliRunner().invoke(small_app, ["--fail", "warning"])
    assert result.exit_code == 0
    assert result.stderr == "note: photos: 1 picture left out\n"
    assert len(others) == 1
    assert CliRunner().invoke(small_app, ["--fail", "warning", "--quiet"]).stderr.count("picture left out") == 0


def test_every_warning_of_densescore_has_its_category() -> None:
    """So that commands print each ``warnings.warn`` of the package in one line."""
    calls = [
        (path, node)
        for path in (Path(__file__).parents[2] / "densescore").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert len(calls) >= 7
    assert [path for path, node in calls if "DensescoreWarning" not in map(ast.unparse, node.args)] == []


@pytest.mark.parametrize("name", command_names(app))
def test_help_text_names_only_options_of_its_command(name: str) -> None:
    options = options_of(app, name)
    texts = " ".join(parameter.help or "" for parameter in options.values())
    named = set(re.findall(r"--[a-z][a-z-]+", re.sub("`[^`]*`", "", texts)))  # not in `other commands`
    assert named <= options.keys()


@pytest.mark.parametrize(
    ("words", "group"),
    [
        ([], Variant(5, "x", "default")),
        (["-s", "7"], Variant(7, "x", "default")),
        (["-s", "7", "--size", "8"], Variant(8, "x", "default")),  # the last wins
        (["--name", "[y]", "-q"], Variant(5, "[y]", "default")),
        (["-v", "--name=x", "--size", "8"], Variant(8, "x", "default")),
    ],
)
def test_group_of_options_is_one_object(words: list[str], group: Group) -> None:
    CALLS.clear()
    assert CliRunner().invoke(small_app, words).exit_code == 0
    assert [group] == CALLS


def test_help_shows_options_of_groups_and_examples() -> None:
    text = CliRunner().invoke(small_app, ["--help"]).stdout
    for part in ("--size", "default: 5", "--quiet", "--verbose"):
        assert part in text
    assert "--hidden" not in text
    assert "--group" not in text
    text = CliRunner().invoke(app, ["classify", "-h"]).stdout
    panels = ["Rank the classes", "Arguments", "Options", "Patches and scores", "Network", "densescore classify photo"]
    assert sorted(panels, key=text.index) == panels


@pytest.mark.parametrize(
    ("words", "status", "stderr"),
    [
        ([], 0, ""),
        (["--fail", "error"], 2, "error: [/x] is wrong\n"),
        (["--fail", "system"], 2, "error: [Errno 98] address in use\n"),
        (["--fail", "file"], 2, "error: /x/aaa: File name too long\n"),
        (["--fail", ""], 2, "error: --fail: got an empty text\n"),
        (["--fail="], 2, "error: --fail: got an empty text\n"),
        (["--fail", "interrupt"], 130, "stopped\n"),
        (["--hidden", "x"], 2, "error: Unknown option: --hidden.\nsee small --help\n"),
        (["--size", "x", "-q"], 2, 'error: Invalid value for --size: unable to convert "x" into int.\n'),
        (["--no-quiet"], 2, "error: Unknown option: --no-quiet.\nsee small --help\n"),
    ],
)
def test_exit_status(words: list[str], status: int, stderr: str) -> None:
    result = CliRunner().invoke(small_app, words)
    assert (result.exit_code, result.stderr) == (status, stderr)


def test_mistyped_option_among_inputs() -> None:
    """Inputs may be ``-``, standard input, but no other word that begins with a hyphen."""
    result = CliRunner().invoke(app, ["score", "-", "--topp", "-o", "scores.parquet"])
    assert (result.exit_code, result.stderr) == (2, "error: unknown option: --topp\n")


def test_interrupt_during_import(tmp_path: Path) -> None:
    """A stand-in for torch is slow to import, and is interrupted."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "a.png").write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    program = subprocess.Popen(
        [sys.executable, "-m", "densescore", "classify", str(tmp_path / "a.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "importing\n"
    time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    _, stderr = program.communicate(timeout=60)
    assert (program.returncode, stderr) == (130, "stopped\n")


def test_scorer_options_are_arguments_of_the_scorer() -> None:
    options = ScorerOptions("alexnet", None, "1,2", "", 16, 3.0, "cpu", "bfloat16", "torch")
    assert options.arguments() == {
        "model": "alexnet", "weights": None, "scales": (1.0, 2.0), "stride": 16, "k": 3.0, "device": "cpu",
        "dtype": "bfloat16", "runtime": "torch", "labels": None, "context": None, "threshold": None,
    }  # fmt: skip
    assert ScorerOptions(patch_sizes="224").arguments()["patch_sizes"] == (224.0,)


def test_random_weights_are_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def scorer(**arguments: Any) -> None:
        calls.append(arguments)
        raise DensescoreError("enough")

    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", scorer)
    for words in (["--weights", "random"], ["--weights", "random.pt"], []):
        assert CliRunner().invoke(app, ["classify", __file__, *words]).exit_code == 2
    assert [arguments["weights"] for arguments in calls] == [None, "random.pt", "default"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (ClassOptions(), ()),
        (ClassOptions("a, b"), ("a", "b")),
        (ClassOptions("", ["goldfish, Carassius auratus"]), ("goldfish, Carassius auratus",)),
        (ClassOptions("a,b", ["b", "c, d", " e"]), ("a", "b", "c, d", " e")),
    ],
)
def test_classes(options: ClassOptions, names: tuple[str, ...]) -> None:
    assert options.names == names


def test_rule_options_change_a_rule() -> None:
    base = LabelRule(patch_share=0.3, overlap="touch")
    assert RuleOptions().change(base) == base
    assert RuleOptions(object_share=0.5, overlap="rule").change(base) == LabelRule(0.3, 0.5, "rule")


def test_defaults_in_help_are_the_librarys() -> None:
    """Defaults and choices from modules that are slow to import."""
    from densescore.data.boxed_set import Labels
    from densescore.paper.actions.network import ActionRecipe
    from densescore.paper.caffe import CAFFE_MEAN
    from densescore.paper.from_scratch import CROPS
    from densescore.transfer.feature_cache import DEFAULT_BYTES
    from densescore.transfer.patch_labels import Overlap

    for name, option, default in (
        ("train", "--crops", str(CROPS)),
        ("train", "--cache-size", f"{DEFAULT_BYTES / 1e9:g}"),
        ("train", "--patch-share", str(LabelRule.patch_share)),
        ("train", "--object-share", str(LabelRule.object_share)),
        ("train-actions", "--epochs", str(ActionRecipe.epochs)),
        ("convert-caffe", "--mean", ",".join(map(str, CAFFE_MEAN))),
    ):
        assert default in re.findall(r"[\d.,]*\d", options_of(app, name)[option].help), option
    assert get_args(get_type_hints(train)["recipe"]) == tuple(RECIPES)
    for option, choices in (("--supervision", Labels), ("--overlap", Overlap)):
        text = options_of(app, "train")[option].help
        assert all(re.search(rf"\b{choice}\b", text) for choice in get_args(choices)), option


@pytest.mark.parametrize("name", command_names(app))
def test_the_first_panel_has_eight_options_at_most(name: str) -> None:
    panels = {parameter.help: parameter.group[0].name for parameter in options_of(app, name).values()}
    assert 2 <= list(panels.values()).count("Options") <= 8


def test_shared_option_has_one_help_text() -> None:
    texts: dict[str, set[str]] = {}
    for name in command_names(app):
        options = options_of(app, name)
        assert {"--quiet", "-q", "--verbose", "-v"} <= options.keys()
        assert len({"-o", "--output", "--out"} & options.keys()) in (0, 3)
        for option in ("--weights", "--device", "--dtype", "--runtime", "--stride", "--scales", "--k", "--context",
                       "--set", "--seed", "--cache", "--cache-size", "--classes", "--class"):  # fmt: skip
            own = (option, name) in (("--classes", "pretrain"), ("--classes", "source-classes"),
                                     ("--cache-size", "reproduce"))  # fmt: skip
            if option in options and not own:
                texts.setdefault(option, set()).add(options[option].help)
    assert len(texts) == 14
    assert {option for option, different in texts.items() if len(different) > 1} == set()
