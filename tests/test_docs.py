"""The examples of docs/*.md run as they stand; each command in them, and in the README, is one that exists."""

import json
import os
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from densescore.cli.bench import app as bench_app
from densescore.cli.main import app
from densescore.io.names import as_text
from densescore.transfer.recipe import RECIPES
from tests.data.voc_set import write_voc

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
COMMANDS = {"densescore": typer.main.get_command(app), "densescore-bench": typer.main.get_command(bench_app)}
SCRIPTS = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.py"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block between ```language and ```."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)


def examples(page: str, kind: str) -> list[str]:
    return [text for found, text in blocks(DOCS / page) if found == kind and "--8<--" not in text]


def run_python(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in examples(page, "python"):
        exec(block, names)
    return names


def run_commands(page: str) -> None:
    """Run every ``densescore`` line of a page."""
    for line in "".join(examples(page, "bash")).splitlines():
        if line.startswith("densescore "):
            result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.fixture(autouse=True)
def torch_runs_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the extra: where OpenVINO is installed, each network that is loaded would be timed in both."""
    monkeypatch.setattr("densescore.network.cpu.openvino.available", lambda _: False)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cat: NDArray[np.uint8]) -> Path:
    """A folder with photo.jpg in it, in which the examples run."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(cat).save("photo.jpg")
    return tmp_path


def test_video(photo: Path, cat: NDArray[np.uint8]) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    from densescore.io.video_writer import write_video

    (photo / "photos").mkdir()
    (photo / "photo.jpg").rename(photo / "photos" / "cat.jpg")
    with write_video(photo / "clip.mp4", fps=5) as add:
        for _ in range(2):
            add(cat)
    run_commands("video.md")
    assert (photo / "heatmaps" / "clip" / "golden_retriever.mp4").exists()
    assert run_python("video.md")["time"] == 0


def test_start(photo: Path) -> None:
    run_commands("index.md")
    assert (photo / "heatmaps" / "photo" / "Egyptian_cat.png").exists()
    names = run_python("index.md")
    assert names["result"].top(1)[0].label == "Egyptian cat"
    assert (photo / "scores.safetensors").exists()


def test_dense_versus_cropped(photo: Path) -> None:
    names = run_python("dense-versus-cropped.md")
    difference = names["dense"].patch_scores - names["cropped"].patch_scores
    assert difference.abs().max() > 0.01  # as the page says: not small
    assert names["cropped"].context == "patch"


def test_train(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(RECIPES["default"], width=64, round=512, image_rounds=1, label_rounds=4)
    monkeypatch.setitem(RECIPES, "default", short)
    write_voc(photo / "photos-voc", {"train": 6, "val": 4})
    exec(examples("train.md", "python")[0], {})  # makes the folder that the first commands read
    run_commands("train.md")
    assert (photo / "from-labels" / "photo" / "cat.png").exists() or (
        photo / "from-labels" / "photo" / "coffee.png"
    ).exists()
    shutil.rmtree(photo / "photos")
    assert (photo / "train_000_labels.png").exists()
    assert list((photo / "results").iterdir())
    names = run_python("train.md")
    assert names["scorer"].labels[:3] == ("blue", "green", "red")


def test_data_sets(photo: Path) -> None:
    names = run_python("data-sets.md")
    assert names["train"].classes == ("cat", "coffee")
    assert names["train"].truth().tolist() == [[1, -1]] * 4 + [[-1, 1]] * 4
    assert names["val"].truth().tolist() == [[1, -1], [-1, 1]]


def test_many_images(photo: Path, cat: NDArray[np.uint8], coffee: NDArray[np.uint8], capsys: Any) -> None:
    for package in ("pyarrow", "pandas", "supervision"):
        pytest.importorskip(package)
    (photo / "photos").mkdir()
    Image.fromarray(cat).save("photos/cat.png")
    Image.fromarray(coffee).save("photos/coffee.png")
    run_commands("many-images.md")
    names = run_python("many-images.md")
    assert names["table"]["label"].tolist() == ["Egyptian cat", "espresso"]
    assert "photos/gone.png: cannot be read" in capsys.readouterr().out


def test_denser(photo: Path) -> None:
    assert run_python("denser.md")["scores"].pyramid.stride == 16
    run_commands("denser.md")
    assert list((photo / "heatmaps" / "photo").glob("*.png"))


def test_export(photo: Path) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    run_commands("export.md")
    names = run_python("export.md")
    assert names["model"]["labels"][names["best"]] == "Egyptian cat"
    np.testing.assert_allclose(names["again"], names["probabilities"], rtol=1e-2, atol=1e-4)
    assert (photo / "lite0.pt2").exists()


def test_huge_images(photo: Path, coffee: NDArray[np.uint8]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    tifffile.imwrite("slide.tif", coffee, tile=(128, 128), photometric="rgb")
    run_commands("huge-images.md")
    names = run_python("huge-images.md")
    assert names["result"]["tiles_scored_now"] == 0  # the command's tiles were there
    assert names["result"]["top"][0]["label"] in {"espresso", "cup"}
    assert tifffile.imread("slide-scores/maps/espresso.tif").shape == (100, 150)


def test_models(photo: Path) -> None:
    names = run_python("models.md")
    assert names["scores"].context == "patch"
    assert names["scores"].labels == ("cat", "dog", "neither")
    assert names["features"].shape == (len(names["scores"].boxes), 64)
    run_commands("models.md")
    assert list((photo / "heatmaps" / "photo").glob("*.png"))


def test_files() -> None:
    name_of = run_python("files.md")["name_of"]
    for data in (b"caf\xe9.png", "café.png".encode(), b'"a".png'):
        assert name_of(as_text(os.fsdecode(data))) == data


def test_no_python_is_left_out() -> None:
    tested = {
        "data-sets",
        "files",
        "models",
        "index",
        "dense-versus-cropped",
        "train",
        "many-images",
        "denser",
        "export",
        "huge-images",
        "video",
    }
    assert {page for page in PAGES if examples(page, "python")} == {f"{name}.md" for name in tested}


def check_options(program: str, words: list[str]) -> None:
    """A command line up to its values: the command is there, and has the options."""
    command: Any = COMMANDS[program]
    if words and (inner := getattr(command, "commands", {}).get(words[0])):
        command = inner
    elif hasattr(command, "commands"):
        assert not words or words[0].isupper() or words[0].startswith("-"), f"{program} has no command {words[0]!r}"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known | {"--help", "-h"}, f"{program} {words[:1]} has no {given - known}"


def check_line(line: str) -> None:
    """Fails for a line of a shell that could not be run by anyone."""
    words = shlex.split(line, comments=True)
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0] == "torchrun":  # … -m densescore COMMAND
        words = words[words.index("-m") + 1 :]
    program, *rest = words
    if program in COMMANDS:
        check_options(program, rest)
        parse(COMMANDS[program], program, rest)
    elif program == "pip":
        (package,) = (word for word in rest if "[" in word)
        extras = set(package.split("[")[1].rstrip("]").split(","))
        optional = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
        assert extras <= set(re.findall(r"^(\w+) = \[", optional, re.MULTILINE)), f"{line}: no such extra"
    elif program == "python":
        text = (ROOT / rest[0]).read_text()
        for option in (word for word in rest if word.startswith("--")):
            parameter = rf"^ *(def main\()?{option[2:].replace('-', '_')}: "
            assert f'"{option}"' in text or re.search(parameter, text, re.MULTILINE), f"{rest[0]} has no {option}"
    elif program == "curl":
        check_call(next(word for word in rest if word.startswith("http")))
    elif program == "docker":
        assert (ROOT / "Dockerfile").is_file()
    else:
        assert words == ["python3", "-m", "venv", ".venv"], f"nothing checks: {line}"


def parse(command: Any, program: str, words: list[str]) -> None:
    """The whole line, its values' types and what is required included; nothing is run."""
    context = command.make_context(program, list(words))
    if hasattr(command, "commands"):
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        inner.make_context(name, rest, parent=context)


def check_call(url: str) -> None:
    source = (ROOT / "densescore" / "demo" / "http.py").read_text()
    parts = urlsplit(url)
    assert f'"{parts.path}"' in source, f"no call {parts.path}"
    for name in parse_qs(parts.query):
        assert re.search(rf"\b{name}: ", source), f"no parameter {name!r} of {parts.path}"


def lines() -> list[Any]:
    found = []
    for page in [ROOT / "README.md", *(DOCS / name for name in PAGES)]:
        for language, text in blocks(page):
            if language == "bash" or (language == "" and re.match("densescore(-bench)? ", text)):
                found += [pytest.param(line, id=f"{page.stem}: {line[:40]}") for line in text.splitlines()]
    return found


@pytest.mark.parametrize("line", lines())
def test_commands_exist(line: str) -> None:
    check_line(line)


@pytest.mark.parametrize("line", ["densescore clasify a.jpg", "densescore heatmap a.jpg --clases cat", "rm -r /",
                                  "densescore train --data x", "pip install 'densescore[no]'",
                                  "python benchmarks/many.py --dat x", "curl 'http://127.0.0.1:1/scores'"])  # fmt: skip
def test_wrong_commands_are_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|nothing checks|no command|has no|no call|missing"):
        check_line(line)


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page: str) -> None:
    for found in re.findall(r"`((?:densescore|densescore-bench|python) [^`]+)`", (DOCS / page).read_text()):
        program, *rest = shlex.split(found)
        if program == "python" and rest[0] == "-m":
            assert find_spec(rest[1]), found
        elif program == "python":
            check_line(found)
        else:
            check_options(program, rest)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    assert {language for language, _ in blocks(DOCS / page)} <= {"bash", "python", "nginx", "text"}


def _espresso(out: str, _: Path) -> bool:
    return "espresso" in out.splitlines()[0]


def _one_box(_: str, folder: Path) -> bool:
    (box,) = (item for item in json.loads((folder / "results.json").read_text()) if item["bbox"][2] > 100)
    return box["category_id"] == 47 and box["bbox"][0] < 300 < box["bbox"][0] + box["bbox"][2]


def _table(_: str, folder: Path) -> bool:
    import pandas

    table = pandas.read_parquet(folder / "scores.parquet")
    return table["label"][0] == "espresso" and "no-such.png" in table["error"][2]


def _shapes(out: str, _: Path) -> bool:
    best = [line.split()[-1] for line in out.splitlines()[:2]]
    return sorted(best) == ["disc", "star"]


def _cups(out: str, _: Path) -> bool:
    corners = re.findall(r"'box': [\[(]([\d.]+), ([\d.]+)", out)  # of patches of 224 pixels; the cup is below, left
    return len(corners) == 5 and all(float(x) + 112 < 450 and float(y) + 112 > 300 for x, y in corners)


def _other_view(out: str, _: Path) -> bool:
    """The wheel is nearest to the other view of it, and the cat's eye to nothing."""
    nearest = [(line.split(": ")[1].split()[0], float(line.split()[-1])) for line in out.splitlines()]
    return nearest[0][0] == "motorcycle_right.png" and nearest[0][1] > 0.8 and nearest[2][1] < 0.4


# What each script is run with here, quick, and what must come of it.
RUNS: dict[str, tuple[dict[str, Any], Callable[[str, Path], bool]]] = {
    "gallery/classify.py": ({}, _espresso),
    "gallery/locate.py": ({"results": Path("results.json")}, _one_box),
    "gallery/many_images.py": ({"names": "coffee.png,chelsea.png,no-such.png"}, _table),
    "gallery/train.py": ({"count": 12}, _shapes),
    "gallery/huge.py": ({"rows": 2, "cols": 2}, _cups),
    "gallery/stride_16.py": ({}, lambda *_: True),
    "neighbors/nearest.py": ({}, _other_view),
    "method/patches.py": ({}, lambda *_: True),
    "method/surgery.py": ({}, lambda *_: True),
    "method/power_mean.py": ({}, lambda *_: True),
    "method/response_map.py": ({}, lambda *_: True),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_gallery(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for package, users in {
        "supervision": "locate",
        "pandas": "many",
        "tifffile": "huge",
        "zarr": "huge",
        "sklearn": "nearest",
    }.items():
        if any(user in script for user in users.split()):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    options, right = RUNS[script]
    (kept,) = (path for path in (DOCS / script).parent.glob(f"{Path(script).stem}.*") if path.suffix != ".py")
    out = tmp_path / kept.name
    runpy.run_path(str(DOCS / script))["main"](out, **options)
    assert right(capsys.readouterr().out, tmp_path)
    picture, shown = np.asarray(Image.open(out).convert("RGB")), np.asarray(Image.open(kept).convert("RGB"))
    assert picture.std() > 20
    if not options.keys() - {"results"}:  # the same picture as the page shows, to what versions of packages change
        assert picture.shape == shown.shape
        assert np.abs(picture.astype(float) - shown).mean() < 10
    assert kept.stat().st_size < 150_000
    page = DOCS / f"{Path(script).parent}.md"
    assert f'"docs/{script}"' in page.read_text()
    assert f"({Path(script).with_suffix(kept.suffix)})" in page.read_text()
