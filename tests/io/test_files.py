"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from densescore import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.marks import MARK


def test_a_file_takes_its_place_only_when_done(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("tw")
        raise RuntimeError("half way")
    assert path.read_text() == "one"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("one", "two"):
        with atomic_write(path, folder="tests", overwrite=True) as temporary:
            (temporary / name).write_text(name)
        assert sorted(file.name for file in path.iterdir()) == [MARK, name]
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(DensescoreError, match="file: exists already"), atomic_write(path):
        pytest.fail("the block must not run")
    with pytest.raises(DensescoreError, match="cannot be written"), atomic_write(path / "inside"):
        pytest.fail("the block must not run")
    assert path.read_text() == "mine"
