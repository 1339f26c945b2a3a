"""Each file of the table is read as a viewer shows it, or refused, by `read_image` and by `open_huge`."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from densescore import DensescoreError, read_image
from densescore.io import windows
from densescore.jobs.huge import open_huge
from tests.io.formats import RGB, RGB16, Array, Case, tifffile
from tests.io.other_formats import others
from tests.io.tiff_formats import tiffs

CASES = [*tiffs(), *others()]


def close(found: Array, expected: Array, tolerance: float) -> None:
    assert found.dtype in (np.uint8, np.float32)
    scaled = [255 * values.astype(np.float64) if values.dtype.kind == "f" else values for values in (found, expected)]
    found, expected = (
        np.broadcast_to(values.reshape(*values.shape[:2], -1), (*values.shape[:2], 3)) for values in scaled
    )
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_read(case: Case, tmp_path: Path) -> None:
    path = tmp_path / f"picture{case.suffix}"
    case.write(path)
    is_file = path.is_file()
    if isinstance(case.expected, str):
        if is_file:
            with pytest.raises(DensescoreError, match=case.expected) as caught:
                read_image(path)
            assert str(path) in str(caught.value)
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
def test_without_tifffile_pixels_are_the_same_or_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"picture{case.suffix}"
    case.write(path)
    if path.is_dir():
        return
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "tifffile", None)
        found: Array | str
        try:
            found = read_image(path)
        except DensescoreError as error:
            found = str(error)
    if isinstance(found, str):
        assert "densescore[huge]" in found or re.search(str(case.expected), found), found
    else:
        np.testing.assert_array_equal(found, read_image(path))


def test_an_old_numcodecs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "zarr.py"
    broken.write_text("raise AttributeError(\"module 'numcodecs' has no attribute 'zarr3'\")\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zarr")
    message = "no attribute 'zarr3'; pip install --upgrade zarr numcodecs"
    with pytest.raises(DensescoreError, match=message), open_huge(tmp_path):
        pytest.fail("opened")


def test_a_dim_image_is_looked_at_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_BLOCK", 5 * RGB.shape[1])
    dim = RGB16 >> 5
    tifffile.imwrite(tmp_path / "dim.tif", dim, photometric="rgb", compression="zlib", rowsperstrip=2)
    with pytest.raises(DensescoreError, match="nearly black"), open_huge(tmp_path / "dim.tif"):
        pytest.fail("opened")
    dim[-1, -1] = 60000
    tifffile.imwrite(tmp_path / "lit.tif", dim, photometric="rgb", compression="zlib", rowsperstrip=2)
    with open_huge(tmp_path / "lit.tif") as image:
        np.testing.assert_allclose(image.read(0, 37, 0, 53), dim / 65535, rtol=1e-6)


def test_the_docs_have_a_row_for_each_kind() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.split("## ")[0].splitlines() if line.startswith("| ")]
    named = {kind.strip() for row in rows[2:] for kind in row.split(",")}
    assert named == {case.kind for case in CASES} | {"HEIC", "AVIF"}
