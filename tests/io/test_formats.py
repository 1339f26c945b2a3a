"""`read_image` and `open_huge` read each file of the table as a viewer shows it, or refuse it."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from densescore import DensescoreError, read_image
from densescore.io import tiff
from densescore.jobs.huge import open_huge
from tests.io.formats import CASES, RGB, RGB16, Array, Case, tifffile


def close(pixels: Array, expected: Array, tolerance: float) -> None:
    assert pixels.dtype in (np.uint8, np.float32)
    scaled = [values * np.float64(255 if values.dtype.kind == "f" else 1) for values in (pixels, expected)]
    one, other = (np.broadcast_to(values.reshape(*values.shape[:2], -1), (*values.shape[:2], 3)) for values in scaled)
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def write(case: Case, path: Path) -> None:
    """Write a case's file, or skip the test where an old imagecodecs cannot write it, or read it."""
    try:
        case.write(path)
    except NotImplementedError as error:
        pytest.skip(f"imagecodecs is too old: {error}")
    if any(name in str(case) for name in ("group3", "group4", "ccitt")):
        codec = getattr(pytest.importorskip("imagecodecs"), "CCITTRLE", None)
        if not getattr(codec, "available", False):
            pytest.skip("imagecodecs is too old: no CCITT")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pixels_of_each_format(case: Case, tmp_path: Path) -> None:
    path = tmp_path / f"picture{case.suffix}"
    write(case, path)
    is_file = path.is_file()
    if isinstance(case.expected, str):
        if is_file:
            with pytest.raises(DensescoreError, match=f"picture.*{case.expected}"):
                read_image(path)
        if case.huge:
            with pytest.raises(DensescoreError, match=case.expected), open_huge(path):
                pytest.fail("opened")
        return
    if is_file:
        whole = read_image(path)
        close(whole, case.expected, case.tolerance)
        np.testing.assert_array_equal(read_image(path.read_bytes()), whole)
    if case.huge:
        with open_huge(path) as image:
            height, width = image.height, image.width
            assert (height, width) == case.expected.shape[:2]
            windows = image.read(0, height, 0, width)
            close(windows, case.expected, case.tolerance)
            if is_file:
                close(windows, whole, min(case.tolerance, 4))
                assert windows.dtype == whole.dtype
            window = image.read(height // 3, height - 2, width // 4, width - 3)
            np.testing.assert_array_equal(window, windows[height // 3 : height - 2, width // 4 : width - 3])


def test_channels_of_planes_and_samples_are_chosen_by_bands(tmp_path: Path) -> None:
    path = tmp_path / "two.ome.tif"
    tifffile.imwrite(path, np.stack([RGB, RGB[::-1]]), ome=True, metadata={"axes": "CYXS"}, photometric="rgb")
    with open_huge(path, bands=(5, 4, 3)) as image:
        np.testing.assert_array_equal(image.read(2, 30, 3, 50), RGB[::-1, ..., ::-1][2:30, 3:50])
    turned = tmp_path / "turned.tif"
    tags = [(274, "H", 1, 6, True), (33550, "d", 3, (0.5, 0.5, 0.0), True)]
    tifffile.imwrite(turned, RGB, photometric="rgb", extratags=tags)
    with pytest.raises(DensescoreError, match="georeferenced, but its orientation is 6"), open_huge(turned):
        pytest.fail("opened")


@pytest.mark.parametrize("case", [case for case in CASES if case.huge], ids=str)
def test_pixels_without_tifffile_are_the_same(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"picture{case.suffix}"
    write(case, path)
    if path.is_dir():
        return
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "tifffile", None)
        pixels, refusal = None, ""
        try:
            pixels = read_image(path)
        except DensescoreError as error:
            refusal = str(error)
    if pixels is None:
        assert "densescore[huge]" in refusal or re.search(str(case.expected), refusal), refusal
    else:
        np.testing.assert_array_equal(pixels, read_image(path))


def test_an_old_numcodecs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "zarr.py"
    broken.write_text("raise AttributeError(\"module 'numcodecs' has no attribute 'zarr3'\")\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zarr")
    message = r"pip install --upgrade 'densescore\[huge\]' zarr numcodecs.*no attribute 'zarr3'"
    with pytest.raises(DensescoreError, match=message), open_huge(tmp_path):
        pytest.fail("opened")


def test_a_dim_image_is_searched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "_BLOCK", 5 * RGB.shape[1])
    dim = RGB16 >> 5
    tifffile.imwrite(tmp_path / "dim.tif", dim, photometric="rgb", compression="zlib", rowsperstrip=2)
    with pytest.raises(DensescoreError, match="nearly black"), open_huge(tmp_path / "dim.tif"):
        pytest.fail("opened")
    dim[-1, -1] = 60000
    tifffile.imwrite(tmp_path / "lit.tif", dim, photometric="rgb", compression="zlib", rowsperstrip=2)
    with open_huge(tmp_path / "lit.tif") as image:
        np.testing.assert_allclose(image.read(0, 37, 0, 53), dim / 65535, rtol=1e-6)


def test_the_docs_have_a_row_for_each_kind() -> None:
    text = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.split("\n## Formats\n")[1].splitlines() if line.startswith("| ")]
    named = {kind.strip() for row in rows[2:] for kind in row.split(",")}
    assert named == {case.kind for case in CASES} | {"HEIC", "AVIF", "Frames of videos"}
