"""What killed runs leave is cleared by the next run; what living ones use is not; nothing else is touched."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from densescore import DensescoreError
from densescore.io.checkpoint import checkpoint_folder
from densescore.io.files import atomic_write, clear_scratch
from densescore.io.locks import exclusive

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def fork(work: Callable[[], None]) -> int:
    """Do `work` in a child process; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write(path: Path, then: Callable[[], object]) -> None:
    with atomic_write(path, folder="tests", overwrite=True) as temporary:
        (temporary / "half").write_text("new")
        then()


@pytest.mark.parametrize("moment", ["inside", "between"])
def test_a_killed_runs_folder_goes_with_the_next_run(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "maps"
    with atomic_write(path, folder="tests") as temporary:
        (temporary / "whole").write_text("old")
    with monkeypatch.context() as patch:
        if moment == "between":  # the old folder is set aside, the new one not yet in its place
            patch.setattr(Path, "replace", kill)
        child = fork(lambda: write(path, kill if moment == "inside" else lambda: None))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob(".densescore-*"))) == 1
    with atomic_write(tmp_path / "other") as temporary:
        temporary.write_text("")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["maps", "other"]
    assert (path / "whole").read_text() == "old"  # also where the kill came between the two steps


def test_a_living_runs_folder_stays(tmp_path: Path) -> None:
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
    assert [file.name for file in tmp_path.iterdir()] == ["maps"]
    assert (tmp_path / "maps" / "half").read_text() == "new"


def test_folders_of_like_names_are_not_ours(tmp_path: Path) -> None:
    for name in (".densescore-notes", ".densescore-0123abcd", ".photo-x1y2z3", ".densescore"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    clear_scratch(tmp_path)
    with atomic_write(tmp_path / "photo") as temporary:
        temporary.write_text("")
    assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "photo"}) == before


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    with checkpoint_folder(out) as folder:
        (folder / "patches.pt").write_bytes(b"")
        for second in (checkpoint_folder, exclusive):
            with pytest.raises(DensescoreError, match=r"head\.safetensors: another run is writing it"), second(out):
                pytest.fail("the block must not run")
        with exclusive(tmp_path / "another"):
            pass
    assert list(tmp_path.iterdir()) == []
    with exclusive(out):
        pass
    mine = tmp_path / ".head.safetensors.densescore-lock"
    mine.write_text("mine")
    with exclusive(out):
        pass
    assert mine.read_text() == "mine"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"

    def work() -> None:
        with checkpoint_folder(out) as folder:
            (folder / "images.pt").touch()
            kill()

    assert os.WTERMSIG(os.waitpid(fork(work), 0)[1]) == signal.SIGKILL
    with checkpoint_folder(out) as folder:
        assert (folder / "images.pt").exists()  # the next run goes on from it
    assert list(tmp_path.iterdir()) == []


def test_a_failed_training_keeps_its_checkpoint_and_never_a_strangers_file(tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    with pytest.raises(ZeroDivisionError), checkpoint_folder(out) as folder:
        (folder / "patches.pt").write_bytes(b"state")
        raise ZeroDivisionError
    (folder / "notes.txt").write_text("mine")
    with checkpoint_folder(out):
        assert (folder / "patches.pt").read_bytes() == b"state"
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_names_as_long_as_the_system_takes(tmp_path: Path) -> None:
    longest = "é" * 127  # 254 bytes
    with atomic_write(tmp_path / longest) as temporary:
        temporary.write_text("x")
    with exclusive(tmp_path / longest):
        pass
    with (
        pytest.raises(DensescoreError, match="cannot be written: File name too long"),
        atomic_write(tmp_path / (longest + "éé")),
    ):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == [longest]
