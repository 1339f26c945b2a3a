"""Folders, patterns and lists become one list of paths."""

import io
from pathlib import Path

import pytest

from densescore import DensescoreError
from densescore.jobs.many.inputs import find_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "deep/c.PNG", "notes.md"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def names(paths: list[str], folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in paths]


def test_a_folder_at_any_depth_and_each_image_once(folder: Path) -> None:
    found = find_inputs([folder, folder / "b.png"])
    assert names(found, folder) == ["a.jpg", "b.png", "deep/c.PNG"]


def test_a_pattern(folder: Path) -> None:
    assert names(find_inputs([f"{folder}/*.png"]), folder) == ["b.png"]
    assert names(find_inputs([f"{folder}/**/*.[pP][nN][gG]"]), folder) == ["b.png", "deep/c.PNG"]
    with pytest.raises(DensescoreError, match="no file matches"):
        find_inputs([f"{folder}/*.gif"])


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder: Path) -> None:
    odd = folder / "x[1].png"
    odd.write_bytes(b"")
    assert find_inputs([odd]) == [str(odd)]


def test_a_list_is_taken_as_it_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = folder / "list.txt"
    listed.write_text("gone.jpg\r\n\nwith space.jpg\ngone.jpg\n")
    assert find_inputs([listed]) == ["gone.jpg", "with space.jpg"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one.jpg\n"))
    assert find_inputs(["-"]) == ["one.jpg"]
    listed.write_text("\n")
    with pytest.raises(DensescoreError, match=r"list\.txt: the list names no images"):
        find_inputs([listed])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="no such file or folder"):
        find_inputs([tmp_path / "nowhere"])
