"""The mark says which names in a folder belong to it; whatever else is there is somebody's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from densescore import DensescoreError
from densescore.io.files import check_replaceable, remove_folder
from densescore.io.marks import ARRAYS, MARK, ZARR, Mark, claim, foreign, read_mark

zarr = pytest.importorskip("zarr")


@pytest.mark.parametrize("densescores", [True, False])
def test_a_zarr_folder(densescores: bool, tmp_path: Path) -> None:
    folder = tmp_path / "r.zarr"
    root = zarr.open_group(folder, mode="w", attributes={"densescore": {}} if densescores else {})
    for key in ("000000001", "000000012"):
        group = root.create_group(key)
        for name, shape in (("maps", (2, 3, 4)), ("boxes", (5, 4))):
            group.create_array(name, data=np.ones(shape), chunks=(1, *shape[1:]))
    root.create_group("000000013")
    mark = read_mark(folder)
    assert mark == (Mark(ARRAYS, (ZARR,)) if densescores else None)
    assert list(foreign(folder, Mark(ARRAYS, (ZARR,)))) == []
    notes = ("notes.txt", "000000001/notes.txt", "000000001/maps/c/0/notes.txt", "000000001/maps/c/0/0/0.bak", "mine/a")
    for name in notes:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (folder / "000000001" / "link").symlink_to(tmp_path)
    assert sorted(foreign(folder, Mark(ARRAYS, (ZARR,)))) == sorted([*notes, "000000001/link"])
    files = len(list(folder.rglob("*")))
    with pytest.raises(DensescoreError, match="did not make"):
        check_replaceable(folder, overwrite=True, folder=ARRAYS)
    remove_folder(folder, ARRAYS)
    assert all((folder / name).read_text() == "mine" for name in notes)
    assert len(list(folder.rglob("*"))) == (files if not densescores else 12)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"made by": "me"}', '{"made by": "densescore"}', '{"made by": "densescore", '
             '"kind": "tests", "holds": ["("]}', "\x00"],
)  # fmt: skip
def test_what_is_no_mark_protects_the_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(text)
    (tmp_path / "thesis.tex").write_text("mine")
    assert read_mark(tmp_path) is None
    with pytest.raises(DensescoreError, match="densescore did not make it"):
        claim(tmp_path, "tests", [".*"])
    remove_folder(tmp_path, "tests")
    assert (tmp_path / "thesis.tex").exists()


def test_a_claimed_folder_is_claimed_again_only_for_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    claim(folder, "tests", [re.escape("a b.txt")])
    assert json.loads((folder / MARK).read_text())["kind"] == "tests"
    (folder / "a b.txt").touch()
    claim(folder, "tests", [])
    with pytest.raises(DensescoreError, match=r"for something else \(tests, not others\)"):
        claim(folder, "others", [])
    (folder / MARK).write_text("")  # as a kill leaves it, between making and writing the file
    (folder / "a b.txt").unlink()
    claim(folder, "others", [])
    remove_folder(folder, "others")
    assert not folder.exists()
