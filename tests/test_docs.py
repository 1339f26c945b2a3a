"""Examples of docs/*.md run as they stand; each command in docs and README exists."""

import json
import os
import re
import runpy
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest
from cyclopts import App
from numpy.typing import NDArray
from PIL import Image

import densescore
from densescore.cli.bench import app as bench_app
from densescore.cli.main import app
from densescore.io.names import as_text
from densescore.network.cpu.openvino import import_openvino
from densescore.transfer.recipe import RECIPES
from tests.cli.runner import CliRunner, command_names, options_of
from tests.conftest import need_openvino
from tests.data.voc_set import write_voc

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
PROGRAMS = {"densescore": app, "densescore-bench": bench_app}
RAN: dict[str, tuple[str, ...]] = {
    "index.md": ("",), "gallery.md": ("Denser", "Video"), "train.md": ("",), "data-sets.md": ("",),
    "find.md": ("",), "many-images.md": ("One table", "A report", "Huge"), "files.md": ("",),
    "models.md": ("Groups", "Your own network", "Dense versus cropped", "Export"),
}  # fmt: skip
"""Sections with Python, or whole pages, that a test runs."""
SCRIPTS = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.py"))


def blocks(page: Path, section: str = "") -> list[tuple[str, str]]:
    """Language and text of each block between ```language and ```; with `section`, of those below its heading."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = re.split(r"^## ", text.split(f"\n## {section}")[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def run(page: str, section: str = "") -> dict[str, Any]:
    """Run the Python and each ``densescore`` line of a page or section, from top to bottom; return the names."""
    assert section in RAN[page]
    names: dict[str, Any] = {"densescore": densescore}
    for language, text in blocks(DOCS / page, section):
        if language == "python" and "--8<--" not in text:
            exec(text, names)
        for line in text.splitlines() if language == "bash" else ():
            if line.startswith("densescore "):
                result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
                assert result.exit_code == 0, f"{line}\n{result.output}"
    return names


@pytest.fixture(autouse=True)
def torch_runs_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO stays off: each new network would be timed in both runtimes."""
    monkeypatch.setattr("densescore.network.cpu.openvino.available", lambda _: False)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cat: NDArray[np.uint8]) -> Path:
    """Working folder with photo.jpg."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(cat).save("photo.jpg", quality=95)
    return tmp_path


def test_index(photo: Path) -> None:
    names = run("index.md")
    assert (photo / "heatmaps" / "photo" / "Egyptian_cat.png").exists()
    assert names["scores"].top(1)[0].label == "Egyptian cat"
    assert (photo / "scores.safetensors").exists()


def test_notebook() -> None:
    names: dict[str, Any] = {}
    cells = json.loads((DOCS / "start.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for source in sources:
        exec(source, names)
    assert names["scores"].top(1)[0].label == "Egyptian cat"
    assert names["patches"].features.shape[1] == 1280


def test_the_reference_has_each_option_of_each_command() -> None:
    pytest.importorskip("mkdocs", reason="needs the extra: pip install 'densescore[docs]'")
    text = runpy.run_path(str(DOCS / "outside_files.py"))["command_reference"]()
    sections = dict(zip(command_names(app), text.split("\n## ")[1:], strict=True))
    for name, section in sections.items():
        assert section.startswith(f"{name}\n")
        assert {option for option in options_of(app, name) if option.startswith("--")} <= {
            *re.findall(r"--[\w-]+", section)
        }


def test_readme(photo: Path) -> None:
    """The printed ranking is that of the code above it."""
    texts = dict(reversed(blocks(ROOT / "README.md")))  # the first of each
    names: dict[str, Any] = {}
    exec(texts["python"], names)
    rows = re.findall(r"label='([^']+)'.*?confidence=([\d.]+).*?best_patch=([\d.]+)", texts["text"])
    assert [label for label, *_ in rows] == [ranked.label for ranked in names["scores"].top(5)]
    for (_, *numbers), ranked in zip(rows, names["scores"].top(5), strict=True):
        np.testing.assert_allclose([float(n) for n in numbers], [ranked.confidence, ranked.best_patch], rtol=1e-3)


def test_the_readmes_first_command_makes_its_picture(photo: Path) -> None:
    """Perceptual hashes: 16×16 brighter-than-its-neighbor bits, and colors, of the file and of a new one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^densescore (.*YOUR_PHOTO\.jpg)", text, re.MULTILINE)
    shown = re.search(r"!\[.*\]\((.*)\)", text)
    assert command is not None
    assert shown is not None
    result = CliRunner().invoke(app, shlex.split(command[1].replace("YOUR_PHOTO", "photo")))
    assert result.exit_code == 0, result.output
    (made,) = (photo / "heatmaps" / "photo").glob("*.png")
    pictures = (densescore.read_image(path) for path in (ROOT / shown[1], made))
    old, new = (cv2.resize(each, (17, 16), interpolation=cv2.INTER_AREA).astype(int) for each in pictures)
    bits = [np.diff(pixels.sum(2), axis=1) > 0 for pixels in (old, new)]
    assert (bits[0] != bits[1]).mean() < 0.05
    assert np.abs(old - new).mean() < 4


def test_gallery_stride(photo: Path) -> None:
    assert run("gallery.md", "Denser")["scores"].pyramid.stride == 16
    assert list((photo / "heatmaps" / "photo").glob("*.png"))


def test_gallery_video(photo: Path, cat: NDArray[np.uint8]) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    from densescore.io.video import write_video

    (photo / "photos").mkdir()
    (photo / "photo.jpg").rename(photo / "photos" / "cat.jpg")
    with write_video(photo / "clip.mp4", fps=5) as add:
        for _ in range(2):
            add(cat)
    assert run("gallery.md", "Video")["time"] == 0
    assert (photo / "heatmaps" / "clip" / "golden_retriever.mp4").exists()


def test_train(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(RECIPES["default"], width=64, round=512, image_rounds=1, label_rounds=4)
    monkeypatch.setitem(RECIPES, "default", short)
    write_voc(photo / "photos-voc", {"train": 6, "val": 4})
    uploads: list[tuple[str, ...]] = []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, **_: f"https://huggingface.co/{repo}")
    monkeypatch.setattr(
        "huggingface_hub.upload_folder",
        lambda repo_id, folder_path, **_: uploads.append((repo_id, *sorted(os.listdir(folder_path)))),
    )
    names = run("train.md")
    assert uploads == [("me/birds", "README.md", "head.safetensors")]
    assert names["scorer"].labels[:3] == ("blue", "green", "red")
    assert list((photo / "from-labels" / "photo").glob("c*.png"))
    assert (photo / "train_000_labels.png").exists()
    assert list((photo / "results").iterdir())


def test_data_sets(photo: Path) -> None:
    names = run("data-sets.md")
    assert names["train"].classes == ("cat", "coffee")
    assert names["train"].truth().tolist() == [[1, -1]] * 4 + [[-1, 1]] * 4
    assert names["val"].truth().tolist() == [[1, -1], [-1, 1]]


def test_find(photo: Path) -> None:
    pytest.importorskip("faiss", reason="needs the extra: pip install 'densescore[search]'")
    (photo / "photos").mkdir()
    for name in ("query.jpg", "a.jpg", "b.jpg", "c.jpg", "photos/new.jpg", "photos/old.jpg"):
        Image.open("photo.jpg").resize((451, 420 if name == "query.jpg" else 300)).save(name)
    names = run("find.md")
    assert {Path(match.source).name for match in names["matches"]} == {"new.jpg", "old.jpg"}
    assert (photo / "found.jpg").exists()


def test_many_images(photo: Path, cat: NDArray[np.uint8], coffee: NDArray[np.uint8], capsys: Any) -> None:
    for package in ("pyarrow", "pandas", "supervision"):
        pytest.importorskip(package)
    (photo / "photos").mkdir()
    Image.fromarray(cat).save("photos/cat.png")
    Image.fromarray(coffee).save("photos/coffee.png")
    names = run("many-images.md", "One table")
    assert names["table"]["label"].tolist() == ["Egyptian cat", "espresso"]
    assert "photos/gone.png: cannot be read" in capsys.readouterr().out
    run("many-images.md", "A report")
    assert (photo / "report.html").exists()
    assert (photo / "pets.html").exists()


def test_huge_images(photo: Path, coffee: NDArray[np.uint8]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    tifffile.imwrite("slide.tif", coffee, tile=(128, 128), photometric="rgb")
    names = run("many-images.md", "Huge")
    assert names["result"]["tiles_scored_now"] == 0  # the command's tiles were there
    assert names["result"]["top"][0]["label"] in {"espresso", "cup"}
    assert tifffile.imread("slide-scores/maps/espresso.tif").shape == (100, 150)


def test_models(photo: Path) -> None:
    assert run("models.md", "Groups")["pets"].labels == ("dog", "cat")
    names = run("models.md", "Your own network")
    assert names["scores"].context == "patch"
    assert names["scores"].labels == ("cat", "dog", "neither")
    assert names["features"].shape == (len(names["scores"].boxes), 64)
    assert list((photo / "heatmaps" / "photo").glob("*.png"))
    names = run("models.md", "Dense versus cropped")
    assert (names["dense"].patch_scores - names["cropped"].patch_scores).abs().max() > 0.01  # as the page says
    assert names["cropped"].context == "patch"


def test_export(photo: Path) -> None:
    need_openvino()
    import_openvino()  # without its usage data
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    names = run("models.md", "Export")
    assert names["model"]["labels"][names["best"]] == "Egyptian cat"
    np.testing.assert_allclose(names["again"], names["probabilities"], rtol=1e-2, atol=1e-4)
    assert (photo / "lite0.pt2").exists()


def test_files() -> None:
    name_of = run("files.md")["name_of"]
    for data in (b"caf\xe9.png", "café.png".encode(), b'"a".png'):
        assert name_of(as_text(os.fsdecode(data))) == data


def check_options(program: str, words: list[str]) -> None:
    """The command exists and has the options; values are not checked."""
    name = words[0] if words and words[0] in command_names(PROGRAMS[program]) else ""
    if program == "densescore" and not name:
        assert not words or words[0].isupper() or words[0].startswith("-"), f"{program} has no command {words[0]!r}"
    known = {*options_of(PROGRAMS[program], name)}
    given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known | {"--help", "-h", "--version"}, f"{program} {words[:1]} has no {given - known}"


def check_line(line: str) -> None:
    """Fail on a shell line that nobody could run."""
    words = shlex.split(line, comments=True)
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0] == "torchrun":  # … -m densescore COMMAND
        words = words[words.index("-m") + 1 :]
    program, *rest = words
    if program in PROGRAMS:
        check_options(program, rest)
        parse(PROGRAMS[program], rest)
    elif program == "pip":
        (package,) = (word for word in rest if "[" in word)
        extras = set(package.split("[")[1].rstrip("]").split(","))
        optional = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
        assert extras <= set(re.findall(r"^(\w+) = \[", optional, re.MULTILINE)), f"{line}: no such extra"
    elif program == "python" and rest[0] == "-c":
        compile(rest[1], line, "exec")
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


def parse(app: App, words: list[str]) -> None:
    """Parse the whole line, types and required values included, without running it."""
    _, bound, _ = app.meta.parse_args(words, print_error=False, exit_on_error=False)
    app.parse_args(bound.args, print_error=False, exit_on_error=False)


def check_call(url: str) -> None:
    source = (ROOT / "densescore" / "demo" / "api.py").read_text()
    parts = urlsplit(url)
    assert f'"{parts.path}"' in source, f"no call {parts.path}"
    for name in parse_qs(parts.query):
        assert re.search(rf"\b{name}: ", source), f"no parameter {name!r} of {parts.path}"


LINES = [
    pytest.param(line, id=f"{page.stem}: {line[:40]}")
    for page in (ROOT / "README.md", *(DOCS / name for name in PAGES))
    for language, text in blocks(page)
    if language == "bash" or (language == "" and re.match("densescore(-bench)? ", text))
    for line in text.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_commands_exist(line: str) -> None:
    check_line(line)


@pytest.mark.parametrize("line", ["densescore clasify a.jpg", "densescore heatmap a.jpg --clases cat", "rm -r /",
                                  "densescore train --data x", "pip install 'densescore[no]'",
                                  "python benchmarks/many.py --dat x", "curl 'http://127.0.0.1:1/scores'"])  # fmt: skip
def test_wrong_commands_are_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|nothing checks|no command|has no|no call|requires"):
        check_line(line)


@pytest.mark.parametrize("page", PAGES)
def test_text_and_blocks(page: str) -> None:
    """Commands in the text have their options; blocks name their language; Python that is not a script is run above."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for command in re.findall(r"`((?:densescore|densescore-bench|python) [^`]+)`", text):
        program, *rest = shlex.split(command)
        if program == "python" and rest[0] == "-m":
            assert find_spec(rest[1]), command
        elif program == "python":
            check_line(command)
        else:
            check_options(program, rest)
    assert {language for language, _ in blocks(DOCS / page)} <= {"bash", "python", "nginx", "text"}
    python = [block for block in blocks(DOCS / page) if block[0] == "python" and "--8<--" not in block[1]]
    ran = [block for section in RAN.get(page, ()) for block in blocks(DOCS / page, section)]
    assert [block for block in python if block not in ran] == []


def one_box(folder: Path) -> bool:
    (box,) = (item for item in json.loads((folder / "results.json").read_text()) if item["bbox"][2] > 100)
    return box["category_id"] == 47 and box["bbox"][0] < 300 < box["bbox"][0] + box["bbox"][2]


def table(folder: Path) -> bool:
    import pandas

    rows = pandas.read_parquet(folder / "scores.parquet")
    return rows["label"][0] == "espresso" and "no-such.png" in rows["error"][2]


def cups(out: str) -> bool:
    """One patch of 224 pixels, around the cup at the lower left."""
    corners = re.findall(r"'box': [\[(]([\d.]+), ([\d.]+)", out)
    return len(corners) == 1 and all(float(x) + 112 < 450 and float(y) + 112 > 300 for x, y in corners)


def other_view(out: str) -> bool:
    """The wheel, its other view, and nothing else."""
    names, similarities = zip(*(line.split() for line in out.splitlines()), strict=True)
    values = [float(value) for value in similarities]
    return names[:2] == ("motorcycle_left.png", "motorcycle_right.png") and values[1] > 0.6 and values[2] < 0.3


@dataclass(frozen=True)
class Run:
    """Packages and quick options of a gallery script; a check of its output and folder."""

    packages: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    right: Callable[[str, Path], bool] = lambda *_: True


RUNS: dict[str, Run] = {
    "gallery/classify.py": Run(right=lambda out, _: "espresso" in out.splitlines()[0]),
    "gallery/locate.py": Run("supervision", {"results": Path("results.json")}, lambda _, folder: one_box(folder)),
    "gallery/many_images.py": Run(
        "pandas", {"names": "coffee.png,chelsea.png,no-such.png"}, lambda _, folder: table(folder)
    ),
    "gallery/train.py": Run(
        "", {"count": 12}, lambda out, _: {line.split()[-1] for line in out.splitlines()[:2]} == {"cat", "wheel"}
    ),
    "gallery/huge.py": Run("tifffile zarr", {"rows": 2, "cols": 2}, lambda out, _: cups(out)),
    "gallery/found.py": Run("faiss", {}, lambda out, _: other_view(out)),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    case = RUNS.get(script, Run())
    for package in case.packages.split():
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (stored,) = (path for path in (DOCS / script).parent.glob(f"{Path(script).stem}.*") if path.suffix != ".py")
    out = tmp_path / stored.name
    runpy.run_path(str(DOCS / script))["main"](out, **case.options)
    assert case.right(capsys.readouterr().out, tmp_path)
    picture, shown = np.asarray(Image.open(out).convert("RGB")), np.asarray(Image.open(stored).convert("RGB"))
    assert picture.std() > 20
    if not case.options.keys() - {"results"}:  # the page's picture, up to versions of packages
        assert picture.shape == shown.shape
        assert np.abs(picture.astype(float) - shown).mean() < 10
    assert stored.stat().st_size < 150_000
    page = (DOCS / f"{Path(script).parent}.md").read_text(encoding="utf-8")
    assert f'"docs/{script}"' in page
    assert f"({Path(script).with_suffix(stored.suffix)})" in page
