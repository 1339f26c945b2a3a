"""Folders, patterns and lists give each picture once, whatever its name."""

import codecs
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError
from densescore.io.find import list_images, matching, read_list


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_gives_pictures_and_nothing_else(tmp_path: Path) -> None:
    pictures = ["..jpg", "a.png", "b.JPG", "deep/c.webp", "deep/er/d.TIFF", "my [copy].jpg", "set[/one].png", "x\n.gif"]
    others = ["._a.png", "deep/._c.webp", "notes.txt", "paper.pdf", "data.h5", "film.mpg", "vector.eps", "raw.npy"]
    others += [".densescore-0123abcd/new/half.png"]  # another run is writing it
    touch(tmp_path, *pictures, *others)
    (tmp_path / "folder.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_images([tmp_path])] == sorted(pictures)
    assert list_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]  # named: the user's word
    for name, message in (("nothing", "no such file or folder"), ("folder.png", "the folder holds no images")):
        with pytest.raises(DensescoreError, match=f"{name}: {message}"):
            list_images([tmp_path / name])


def test_links_to_folders_give_each_picture_once(tmp_path: Path) -> None:
    touch(tmp_path / "photos", "a.png", "deep/b.png")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "deep" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "alias").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "same.png").symlink_to(tmp_path / "photos" / "a.png")  # another name for a file: kept
    photos = tmp_path / "photos"
    expected = [photos / "a.png", photos / "deep" / "b.png", photos / "same.png"]
    assert list_images([photos]) == expected
    assert list_images([photos, tmp_path / "alias", photos / "deep"]) == expected
    assert matching(f"{photos}/**/*.png") == list(map(str, expected))
    assert matching(f"{photos}/**/**/*.png") == list(map(str, expected))
    assert len(matching(f"{photos}/*/*/*.png")) == 3  # through the links, as the pattern says
    assert len(matching(f"{tmp_path}/**/a.png")) == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("**/*.png", ["b.png", "deep/c.png", "set[/one].png"]),
        ("**/*.[pP][nN][gG]", ["b.png", "deep/c.png", "deep/d.PNG", "set[/one].png"]),
        ("*[[]/*", ["set[/one].png"]),
        ("set[/*.png", ["set[/one].png"]),
        ("my [copy]/?.jpg", ["my [copy]/e.jpg"]),  # a part that exists is a name
        ("my [c]opy/*", []),
        ("m*/e.jpg", ["my [copy]/e.jpg"]),
        ("**", ["b.png", "deep/c.png", "deep/d.PNG", "my [copy]/e.jpg", "set[/one].png"]),
        (".h*", [".hidden.png"]),
        ("nowhere/*", []),
        ("b.png/*", []),
    ],
)
def test_a_pattern(pattern: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "b.png", ".hidden.png", "deep/c.png", "deep/d.PNG", "my [copy]/e.jpg", "set[/one].png")
    touch(tmp_path, ".secret/f.png")
    assert matching(f"{tmp_path}/{pattern}") == [f"{tmp_path}/{name}" for name in expected]
    monkeypatch.chdir(tmp_path)
    assert matching(pattern) == expected


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf_8_are_found(tmp_path: Path) -> None:
    data = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    os.close(os.open(data, os.O_CREAT))
    assert [os.fsencode(path) for path in list_images([tmp_path])] == [data]
    assert [os.fsencode(path) for path in matching(f"{tmp_path}/*.png")] == [data]
    assert os.fsencode(read_list(data + b"\n", "list")[0]) == data


def test_unreadable_paths_are_clear_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("x" * 300, "File name too long"), ("a/" * 3000, "File name too long"), ("a\0b", "null")):
        with pytest.raises(DensescoreError, match=message):
            list_images([tmp_path / name])
    touch(tmp_path, "open/a.png", "closed/b.png")
    real = os.scandir

    def scan(path: str) -> object:
        if Path(path).name == "closed":  # as the system answers whoever is not root
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    for search in (lambda: list_images([tmp_path]), lambda: matching(f"{tmp_path}/**/*.png")):
        with pytest.raises(DensescoreError, match="closed: cannot be read: Permission denied"):
            search()


def test_a_folder_deeper_than_python_recurses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = 1010
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("a.png").touch()
        os.chdir(tmp_path)
        [found] = matching("**/*.png")
        assert found.count("d/") == depth
        assert [str(path) for path in list_images(["."])] == [found]
    finally:
        os.chdir(tmp_path)
        subprocess.run(["rm", "-rf", "d"], check=True)  # pytest's own clearing away recurses


ENCODINGS = {
    b"": "utf-8", codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
}  # fmt: skip


@pytest.mark.parametrize(("mark", "encoding"), ENCODINGS.items())
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0\ufeff"), min_size=1), min_size=1))
def test_a_list_in_any_encoding(mark: bytes, encoding: str, names: list[str]) -> None:
    names = [name for name in names if name.strip()] or ["ä.png"]
    for end in ("\n", "\r\n"):
        assert read_list(mark + "".join(name + end for name in names).encode(encoding), "list") == names


def test_broken_lists_are_refused() -> None:
    for data, message in (
        (b"\n \r\n", "the list names no images"),
        ("a.png\n".encode("utf-16-le"), "holds a NUL character"),
        (codecs.BOM_UTF16_LE + b"a", "begins as UTF-16-LE, but is not"),
    ):
        with pytest.raises(DensescoreError, match=f"some list: .*{message}"):
            read_list(data, "some list")
