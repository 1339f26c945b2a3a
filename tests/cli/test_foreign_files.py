"""What densescore did not make is there after every command as it was before, asked to overwrite or not."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli import runner
from tests.cli.runner import Result

pytest.importorskip("pyarrow")
pytest.importorskip("tifffile")
pytest.importorskip("zarr")
import tifffile
import zarr

import densescore.jobs.many.table  # noqa: F401  # before the scorer that its annotations name is replaced
from densescore import DensescoreError, DenseScorer
from densescore.io.files import MARK
from densescore.models.head import AdaptationHead, HeadFile, save_head
from densescore.models.registry import load_classifier
from densescore.network import export as network_export
from densescore.paper.actions.voc import ActionSet
from densescore.paper.pretrain import training
from densescore.paper.pretrain.training import Accuracy
from densescore.paper.reproduce.chain import SMOKE, Chain
from densescore.transfer.feature_cache import FeatureCache
from tests.conftest import Toy
from tests.data.voc_set import CLASSES, write_voc
from tests.paper.pretrain.source_training import write_tree


class Command(NamedTuple):
    """A command, and the names that it writes to: the one it is given, and those that follow from it."""

    arguments: tuple[str, ...]
    out: str
    derived: tuple[str, ...] = ()
    folder: bool = False


COMMANDS = {
    "heatmap": Command(("heatmap", "pictures", "--out", "."), "cat", ("image", "cat-2"), folder=True),
    "score": Command(("score", "pictures", "--out", "r.parquet"), "r.parquet", ("r.zarr", "r.parquet.parts")),
    "score --maps": Command(
        ("score", "pictures", "--maps", "--out", "r.parquet"), "r.parquet", ("r.zarr", "r.parquet.parts")
    ),
    "huge": Command(("huge", "slide.tif", "--patch-sizes", "20", "--out", "out"), "out", folder=True),
    "labels": Command(("labels", "train_000", "--data", "voc", "--scales", "1,2", "--out", "x.png"), "x.png"),
    "train": Command(("train", "--data", "voc", "--out", "h.safetensors"), "h.safetensors", ("h.checkpoint",)),
    "evaluate": Command(
        ("evaluate", "--data", "voc", "--set", "train", "--model", "model.safetensors", "--no-maps", "--out", "out"),
        "out",
        folder=True,
    ),
    "tune-k": Command(
        ("tune-k", "--data", "voc", "--set", "train", "--model", "model.safetensors", "--out", "k.safetensors"),
        "k.safetensors",
    ),
    "export": Command(("export", "--out", "model.onnx"), "model.onnx"),
    "source-classes": Command(("source-classes", "--classes", "ilsvrc", "--out", "wnids.txt"), "wnids.txt"),
    "pretrain": Command(
        ("pretrain", "--data", "tree", "--width", "8", "--device", "cpu", "--out", "s.safetensors"),
        "s.safetensors",
        ("s.checkpoint",),
    ),
    "convert-caffe": Command(("convert-caffe", "net.onnx", "--out", "c.safetensors"), "c.safetensors"),
    "train-actions": Command(
        ("train-actions", "--data", "voc", "--sliding", "--out", "a.safetensors"), "a.safetensors", ("a.checkpoint",)
    ),
}


@pytest.fixture(scope="module")
def scorer() -> DenseScorer:
    return DenseScorer(Toy(), labels=CLASSES, patch_size=20, scales=(1,), runtime="torch")


@pytest.fixture(scope="module")
def head() -> HeadFile:
    entries = (CLASSES, "lite0", (0.5,) * 3, (0.5,) * 3, 224)
    return HeadFile(
        AdaptationHead(6, 3, 4), *entries, training={"patches": {}, "images": 3, "labels": dict.fromkeys(CLASSES, 1)}
    )


@pytest.fixture
def place(tmp_path: Path, scorer: DenseScorer, head: HeadFile, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with all that the commands read; networks are small, and training and drawing are stubs."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("cat.png", "..png", "deep/cat.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(draw.integers(0, 256, (24, 30, 3), np.uint8)).save(path, "png")
    tifffile.imwrite("slide.tif", draw.integers(0, 256, (48, 64, 3), np.uint8), tile=(16, 16), photometric="rgb")
    write_voc(tmp_path / "voc", {"train": 3})
    write_tree(tmp_path / "tree", count=4)
    save_head("model.safetensors", head)
    Path("net.onnx").write_bytes(b"a network")
    stubs: dict[str, Any] = {
        "cli.options.known_labels": lambda *_: None,
        "scoring.scorer.DenseScorer": lambda *_, **__: scorer,
        "transfer.pipeline.train_model": lambda *_, **__: head,
        "paper.actions.voc.read_actions": lambda *_: ActionSet("train", ("jumping",), ()),
        "results.heatmaps.plot_map": lambda *_: SimpleNamespace(encode=lambda: b"drawn"),
        "evaluation.voc_results.draw_curve": lambda *x: Path(x[-1]).write_bytes(b"drawn"),
        "transfer.figure.draw_patch_labels": lambda *x, **_: Path(x[-1]).write_bytes(b"drawn"),
        "transfer.feature_cache.FeatureCache": lambda *_, **__: None,
        "transfer.pipeline.cached_scores": lambda *_: lambda image: scorer.score(image.path),
    }
    converted = SimpleNamespace(weights={"classifier.6.bias": torch.zeros(3)}, name="alexnet", difference=0.0)
    stubs["paper.caffe.convert_caffe"] = lambda *_: converted
    for name, stub in stubs.items():
        monkeypatch.setattr(f"densescore.{name}", stub)
    monkeypatch.setattr(training, "train_source", lambda *_, **__: Accuracy(1, 0.5, 1.0, 4))
    toy = load_classifier(Toy(), labels=CLASSES, patch_size=20)
    monkeypatch.setattr(network_export, "load_classifier", lambda *_, **__: toy)
    monkeypatch.setattr(network_export, "_trace", lambda *_: None)
    monkeypatch.setattr(network_export, "_write_onnx", lambda _, path, __: path.write_bytes(b"a graph"))
    monkeypatch.setattr(network_export, "_onnx_runner", lambda *_: None)
    monkeypatch.setattr(network_export, "_check", lambda *_: 0.0)
    return tmp_path


@pytest.fixture
def umask() -> Iterator[int]:
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


def run(*arguments: str) -> Result:
    result = runner.run(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def contents(path: Path) -> dict[str, str]:
    """All that is at a path, at any depth: what it is, and a digest."""
    found = {}
    for file in [path, *sorted(path.rglob("*"))] if path.is_dir() and not path.is_symlink() else [path]:
        if file.is_symlink():
            found[str(file)] = f"link to {os.readlink(file)}"
        else:
            found[str(file)] = "folder" if file.is_dir() else hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def a_file(path: Path) -> None:
    path.write_bytes(b"mine")


def a_folder(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "thesis.tex").write_text("mine")
    (path / "part-000000000000.parquet").write_text("mine")


def a_zarr(path: Path) -> None:
    zarr.open_group(path, mode="w").create_array("0", data=np.arange(4))


def a_link(path: Path) -> None:
    a_folder(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_forged_mark(path: Path) -> None:
    """A folder of densescore's, but made for another purpose."""
    path.mkdir()
    (path / MARK).write_text('{"made by": "densescore", "kind": "something else", "holds": [".*"]}')
    (path / "result").write_text("mine")


FOREIGN: tuple[Callable[[Path], None], ...] = (a_file, a_folder, a_zarr, a_link, a_forged_mark)


@pytest.mark.parametrize("name", COMMANDS)
def test_foreign_files_stay(name: str, place: Path) -> None:
    command = COMMANDS[name]
    for overwrite in (False, True):
        for at in (command.out, *command.derived):
            for make in FOREIGN:
                path = place / at
                make(path)
                before = contents(path) | contents(place / "elsewhere") if make is a_link else contents(path)
                result = run(*command.arguments, *(["--overwrite"] if overwrite else []))
                case = f"{make.__name__} at {at}, overwrite {overwrite}: {result.output}"
                if overwrite and make is a_file and at == command.out and not command.folder:
                    assert result.exit_code == 0, case  # a file that the user named, and asked to replace
                    assert path.read_bytes() != b"mine", case
                else:
                    after = contents(path) | contents(place / "elsewhere") if make is a_link else contents(path)
                    assert after == before, case
                    if at == command.out:
                        assert result.exit_code in (1, 2), case
                        assert at in result.stderr, case
                clear(place, command)


def clear(place: Path, command: Command) -> None:
    for name in (command.out, *command.derived, "elsewhere"):
        path = place / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_its_results_alone_in_the_umasks_mode(name: str, place: Path, umask: int) -> None:
    command = COMMANDS[name]
    before = contents(place)
    for arguments in ((), ("--overwrite",)):
        runner.succeed(*command.arguments, *arguments)
        after = contents(place)
        assert {path: after.get(path) for path in before} == before
        new = [Path(path) for path in after.keys() - before.keys()]
        names = {path.relative_to(place).parts[0] for path in new}
        assert {command.out} <= names <= {command.out, *command.derived}  # no lock or scratch folder
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in new}
        assert modes == {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in new}
    if not command.folder:
        return
    note = place / command.out / "note.txt"
    note.write_text("mine")
    refused = run(*command.arguments, "--overwrite")
    assert refused.exit_code in (1, 2)
    assert "did not make note.txt" in refused.stderr
    assert note.read_text() == "mine"


@pytest.fixture
def own(place: Path) -> Path:
    """Results of densescore, which other runs read."""
    for name in ("heatmap", "huge"):
        assert run(*COMMANDS[name].arguments).exit_code == 0
    Image.fromarray(np.zeros((24, 30, 3), np.uint8)).save(place / "cat" / "cat.png")  # as an overlay is
    return place


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ("heatmap cat/cat.png --out .", "cat"),
        ("heatmap pictures cat/cat.png --out .", "cat"),
        ("score r.parquet --out r.parquet", "r.parquet"),
        ("score r.zarr/a.png --maps --out r.parquet", "r.zarr"),
        ("huge out/maps/blue.tif --patch-sizes 20 --out out", "out"),
        ("huge out/scores.zarr --patch-sizes 20 --out out", "out"),
        ("huge d/scores.zarr --patch-sizes 20 --out d", "d"),
        ("huge d --patch-sizes 20 --out d", "d"),
        ("tune-k --data voc --set train --model model.safetensors --out model.safetensors", "model.safetensors"),
        ("tune-k --data voc --set train --model link.safetensors --out model.safetensors", "model.safetensors"),
        ("tune-k --data voc --set train --model model.safetensors --out link.safetensors", "link.safetensors"),
        ("train --data voc --weights model.safetensors --out model.safetensors", "model.safetensors"),
        ("evaluate --data voc --set train --model out/m.safetensors --no-maps --out out", "out"),
        ("evaluate --data voc --set train --model model.safetensors --no-maps --out .", "voc"),
        ("evaluate --data voc --set train --model model.safetensors --no-maps --out voc", "voc"),
        ("source-classes --classes wnids.txt --out wnids.txt", "wnids.txt"),
        ("export --weights model.onnx -o model.onnx", "model.onnx"),
        ("labels train_000 --data voc --out voc/JPEGImages/train_000.jpg", "voc"),
        ("score pictures --out /dev/null.parquet/../null", "pictures"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_or_what_holds_it_is_never_replaced(arguments: str, kept: str, overwrite: bool, own: Path) -> None:
    zarr.open_group("d/scores.zarr", mode="w").create_array("0", data=np.zeros((3, 40, 40), np.uint8))
    a_folder(own / "r.zarr")
    for name in ("r.parquet", "r.zarr/a.png", "model.onnx", "out/m.safetensors"):
        a_file(own / name)
    (own / "wnids.txt").write_text("n02834778\n")
    (own / "link.safetensors").symlink_to("model.safetensors")
    before = contents(own / kept)
    result = run(*arguments.split(), *(["--overwrite"] if overwrite else []))
    is_finished = arguments.startswith("heatmap pictures") and not overwrite  # and skipped
    assert result.exit_code in ((0,) if is_finished else (1, 2)), result.output
    assert contents(own / kept) == before


def test_a_cache_deletes_no_strangers_files(scorer: DenseScorer, place: Path) -> None:
    folder = place / "cache"
    for name in ("mine.npy", ".old-folder/mine.npy", "0123.npy"):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"mine" * 1000)
        os.utime(path, (0, 0))
    before = contents(folder)
    cache = FeatureCache(scorer, folder, max_bytes=1)
    for name in ("cat.png", "..png"):
        assert len(cache.features(place / "pictures" / name)) > 0
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before
    assert len(after) == len(before) + 1  # its own files are kept to the limit


def test_reproduce_does_not_mix_its_tables_with_others(place: Path) -> None:
    chain = Chain(SMOKE, {}, place / "work", torch.device("cpu"))
    a_folder(place / "work")
    a_file(place / "work" / "table1.md")
    before = contents(place / "work")
    with pytest.raises(DensescoreError, match=r"table1\.md: exists already, and no reproduce\.json says what it is"):
        chain.table(1)
    assert contents(place / "work") == before


@pytest.mark.parametrize("out", ["/dev/null", "pipe"])
def test_devices_and_pipes_are_not_replaced(out: str, place: Path) -> None:
    os.mkfifo("pipe")
    before = os.stat(out)
    result: Any = run("source-classes", "--classes", "ilsvrc", "--out", out, "--overwrite")
    assert result.exit_code == 2
    assert "is a device or pipe" in result.stderr
    assert os.path.samestat(before, os.stat(out))
