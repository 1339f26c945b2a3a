"""Files and folders appear whole or not at all; nothing that densescore did not make is deleted."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densescore import DensescoreError
from densescore.io import files
from densescore.io.checkpoint import checkpoint_folder
from densescore.io.files import (
    ARRAYS,
    MARK,
    ZARR,
    Mark,
    atomic_write,
    check_replaceable,
    claim,
    clear_scratch,
    exclusive,
    foreign,
    read_mark,
    remove_folder,
    write_mark,
)

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_only_when_done(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("tw")
        raise RuntimeError("half way")
    with pytest.raises(DensescoreError, match=r"file\.txt: exists already"), atomic_write(path):
        pytest.fail("ran")
    with pytest.raises(DensescoreError, match="cannot be written"), atomic_write(path / "inside"):
        pytest.fail("ran")
    assert path.read_text() == "one"
    assert names(path.parent) == ["file.txt"]
    for name in ("one", "two"):  # folders are replaced whole
        with atomic_write(tmp_path / "folder", folder="tests", overwrite=True) as temporary:
            (temporary / name).write_text(name)
        assert names(tmp_path / "folder") == [MARK, name]
    assert names(tmp_path) == ["folder", "new"]


def _appear(path: Path, what: str) -> None:
    """Make a file, a link, or a folder as another run or the user would."""
    if what == "link":
        path.symlink_to("elsewhere")
    elif what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        write_mark(path, "others" if what == "folder" else "tests", ["mine"])
        (path / "mine").write_text("mine")
        if what == "mixed":
            (path / "thesis.tex").write_text("mine")


def contents(folder: Path) -> dict[str, object]:
    return {str(path.relative_to(folder)): path.is_file() and path.read_text() for path in folder.rglob("*")}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("late", [True, False])  # after the last look at the place
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("what", ["file", "link", "folder", "heatmaps", "mixed"])
@pytest.mark.parametrize("kind", ["", "tests"])
def test_what_appears_meanwhile_stays(
    kind: str, what: str, overwrite: bool, late: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    replaceable = what in ("file", "link") if not kind else what == "heatmaps"
    if overwrite and (late or replaceable):
        pytest.skip("is replaced, as asked for")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    move = files._move_new

    def late_move(*places: Any) -> None:
        if late:
            _appear(path, what)
        move(*places)

    monkeypatch.setattr(files, "_move_new", late_move)
    before: dict[str, object] = {}
    with (
        pytest.raises(DensescoreError, match=r"out: (exists already|has come|is )"),
        atomic_write(path, overwrite=overwrite, folder=kind) as temporary,
    ):
        (temporary / "new" if kind else temporary).write_text("new")
        if not late:
            _appear(path, what)
            before = contents(path)
    assert names(tmp_path) == ["out"]
    assert "new" not in contents(path)
    assert late or contents(path) == before
    assert path.is_symlink() or path.is_dir() or path.read_text() == "mine"


@pytest.mark.parametrize("links", [True, False])
def test_of_many_runs_one_takes_the_place(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    barrier = threading.Barrier(8)

    def run(number: int, kind: str) -> bool:
        try:
            with atomic_write(tmp_path / f"out{kind}", folder=kind) as temporary:
                (temporary / "a" if kind else temporary).write_text(str(number))
                barrier.wait()
        except DensescoreError:
            return False
        file = tmp_path / f"out{kind}" / "a" if kind else tmp_path / "out"
        return file.read_text() == str(number)

    for kind in ("", "tests"):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(run, range(8), [kind] * 8)) == 1


# --- Marks ---


@pytest.mark.parametrize("marked", [True, False])
def test_a_zarr_folder(marked: bool, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    folder = tmp_path / "r.zarr"
    root = zarr.open_group(folder, mode="w", attributes={"densescore": {}} if marked else {})
    for key in ("000000001", "000000012"):
        group = root.create_group(key)
        for name, shape in (("maps", (2, 3, 4)), ("boxes", (5, 4))):
            group.create_array(name, data=np.ones(shape), chunks=(1, *shape[1:]))
    root.create_group("000000013")
    mark = Mark(ARRAYS, (ZARR,))
    assert read_mark(folder) == (mark if marked else None)
    assert list(foreign(folder, mark)) == []
    notes = ("notes.txt", "000000001/notes.txt", "000000001/maps/c/0/notes.txt", "000000001/maps/c/0/0/0.bak", "mine/a")
    for name in notes:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (folder / "000000001" / "link").symlink_to(tmp_path)
    assert sorted(foreign(folder, mark)) == sorted([*notes, "000000001/link"])
    count = len(list(folder.rglob("*")))
    with pytest.raises(DensescoreError, match="did not make"):
        check_replaceable(folder, overwrite=True, folder=ARRAYS)
    remove_folder(folder, ARRAYS)
    assert all((folder / name).read_text() == "mine" for name in notes)
    assert len(list(folder.rglob("*"))) == (12 if marked else count)


BROKEN_MARKS = ("", "{}", "[1]", '{"made by": "me"}', '{"made by": "densescore"}', "\x00",
                '{"made by": "densescore", "kind": "tests", "holds": ["("]}')  # fmt: skip


@pytest.mark.parametrize("text", BROKEN_MARKS)
def test_a_broken_mark_protects_the_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(text)
    (tmp_path / "thesis.tex").write_text("mine")
    assert read_mark(tmp_path) is None
    with pytest.raises(DensescoreError, match="densescore did not make it"):
        claim(tmp_path, "tests", [".*"])
    remove_folder(tmp_path, "tests")
    assert (tmp_path / "thesis.tex").exists()


def test_a_claimed_folder_is_claimed_again_only_as_the_same_kind(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    claim(folder, "tests", [re.escape("a b.txt")])
    assert json.loads((folder / MARK).read_text())["kind"] == "tests"
    (folder / "a b.txt").touch()
    claim(folder, "tests", [])
    with pytest.raises(DensescoreError, match=r"for something else \(tests, not others\)"):
        claim(folder, "others", [])
    (folder / MARK).write_text("")  # as a kill between open and write leaves it
    (folder / "a b.txt").unlink()
    claim(folder, "others", [])
    remove_folder(folder, "others")
    assert not folder.exists()


# --- Killed and running processes ---


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child process; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def killed(child: int) -> bool:
    """Whether a child ended by SIGKILL."""
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write(path: Path, then: Callable[[], object]) -> None:
    with atomic_write(path, folder="tests", overwrite=True) as temporary:
        (temporary / "half").write_text("new")
        then()


@forks
@pytest.mark.parametrize("moment", ["inside", "between"])
def test_the_next_run_clears_a_killed_runs_folder(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "maps"
    with atomic_write(path, folder="tests") as temporary:
        (temporary / "whole").write_text("old")
    with monkeypatch.context() as patch:
        if moment == "between":  # the old folder is set aside, the new one not yet in its place
            patch.setattr(files, "_move_new", kill)
        child = fork(lambda: write(path, kill if moment == "inside" else lambda: None))
    assert killed(child)
    assert len(list(tmp_path.glob(".densescore-*"))) == 1
    with atomic_write(tmp_path / "other") as temporary:
        temporary.write_text("")
    assert names(tmp_path) == ["maps", "other"]
    assert (path / "whole").read_text() == "old"


@forks
def test_a_running_processs_folder_stays(tmp_path: Path) -> None:
    told, telling = os.pipe()
    waiting, going = os.pipe()

    def then() -> None:
        os.write(telling, b"writing")
        os.read(waiting, 1)

    child = fork(lambda: write(tmp_path / "maps", then))
    assert os.read(told, 7) == b"writing"
    before = list(tmp_path.glob(".densescore-*"))
    clear_scratch(tmp_path)
    assert list(tmp_path.glob(".densescore-*")) == before
    assert len(before) == 1
    os.write(going, b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert names(tmp_path) == ["maps"]
    assert (tmp_path / "maps" / "half").read_text() == "new"


def test_foreign_folders_of_similar_names_stay(tmp_path: Path) -> None:
    for name in (".densescore-notes", ".densescore-0123abcd", ".photo-x1y2z3", ".densescore"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with atomic_write(tmp_path / "photo") as temporary:
        temporary.write_text("")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "photo"])


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    with checkpoint_folder(out) as folder:
        (folder / "patches.pt").write_bytes(b"")
        for second in (checkpoint_folder, exclusive):
            with pytest.raises(DensescoreError, match=r"head\.safetensors: another run is writing it"), second(out):
                pytest.fail("ran")
        with exclusive(tmp_path / "another"):
            pass
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / ".head.safetensors.densescore-lock"
    mine.write_text("mine")
    with exclusive(out):
        pass
    assert mine.read_text() == "mine"


@forks
def test_a_lock_ends_with_its_process_and_the_next_run_resumes(tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"

    def work() -> None:
        with checkpoint_folder(out) as folder:
            (folder / "images.pt").touch()
            kill()

    assert killed(fork(work))
    with checkpoint_folder(out) as folder:
        assert (folder / "images.pt").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_training_keeps_its_checkpoint_and_a_finished_one_foreign_files(tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    with pytest.raises(ZeroDivisionError), checkpoint_folder(out) as folder:
        (folder / "patches.pt").write_bytes(b"state")
        raise ZeroDivisionError
    (folder / "notes.txt").write_text("mine")
    with checkpoint_folder(out):
        assert (folder / "patches.pt").read_bytes() == b"state"
    assert names(folder) == ["notes.txt"]


def test_names_as_long_as_the_system_takes(tmp_path: Path) -> None:
    longest = "é" * 127  # 254 bytes
    with atomic_write(tmp_path / longest) as temporary, exclusive(tmp_path / longest):
        temporary.write_text("x")
    with pytest.raises(DensescoreError, match="cannot be written: File name too long"):
        atomic_write(tmp_path / f"{longest}éé").__enter__()
    assert os.listdir(tmp_path) == [longest]
