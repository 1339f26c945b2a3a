"""Huge images on disk, read by windows: TIFF, BigTIFF, GeoTIFF, whole-slide formats that are TIFF, and zarr."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.images import Pixels, read_image

MOST_CHUNK = 2**28
"""Bytes of the largest piece that a file may be stored in; a piece is decoded whole."""

_MINISWHITE, _MINISBLACK, _RGB, _YCBCR = 0, 1, 2, 6
_GEOTIFF = (33550, 33922, 34264, 34735, 34736, 34737)  # ModelPixelScale … GeoAsciiParams
GeoTag = tuple[int, int, int, Any, bool]
"""Code, type, count, value, written once: as tifffile takes and gives a tag."""

_PLAIN: tuple[bool, bool, tuple[GeoTag, ...]] = (False, True, ())


@dataclass(frozen=True)
class HugeImage:
    """An open image.

    Attributes:
        name: its path.
        height: in pixels.
        width: in pixels.
        geotags: the GeoTIFF tags that it carries.
    """

    name: str
    height: int
    width: int
    geotags: tuple[GeoTag, ...]
    _window: Callable[[slice, slice], NDArray[Any]]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """The window ``[y0, y1) × [x0, x1)`` as `densescore.read_image` would have it: RGB ``[h, w, 3]``.

        Raises:
            DensescoreError: the file is broken there, or holds what is not a picture.
        """
        try:
            values = self._window(slice(y0, y1), slice(x0, x1))
        except Exception as error:  # a codec meets broken data in many ways
            raise DensescoreError(f"{self.name}: cannot be read at {y0}:{y1}, {x0}:{x1}: {error}") from error
        if values.dtype == np.uint16:
            values = (values / np.float32(65535)).astype(np.float32)
        try:
            return read_image(values)
        except DensescoreError as error:
            raise DensescoreError(f"{self.name} at {y0}:{y1}, {x0}:{x1}: {error}") from error


@contextmanager
def open_huge(path: str | os.PathLike[str], bands: Sequence[int] | None = None) -> Iterator[HugeImage]:
    """Open a TIFF (of a pyramid, the full size) or a zarr array (of an OME-Zarr group, the full size).

    Args:
        path: of the file, or the zarr folder.
        bands: numbers of the channels to take as gray, or red, green and blue, from 0; where there are others than
            gray, RGB or RGB with transparency.

    Raises:
        DensescoreError: not such an image, channels that need `bands`, or pieces too large to be read by windows.
    """
    path = Path(path)
    if not path.exists():
        raise DensescoreError(f"{path}: no such file or folder")
    try:
        import tifffile
        import zarr
    except ImportError as error:
        raise DensescoreError("huge images need tifffile and zarr: pip install 'densescore[huge]'") from error
    with ExitStack() as stack:
        try:
            if path.is_dir():
                array, axes = _open_zarr(path, zarr)
                inverted, alpha, tags = _PLAIN
            else:
                tiff = stack.enter_context(tifffile.TiffFile(path))
                page = tiff.series[0].levels[0].keyframe
                inverted, alpha, tags = _check_page(path, page)
                array, axes = _open_tiff(path, tiff, stack)
        except DensescoreError:
            raise
        except Exception as error:
            raise DensescoreError(f"{path}: cannot be opened as a TIFF or zarr image: {error}") from error
        yield _image(path, array, axes, bands, inverted, alpha, tags)


def _open_zarr(path: Path, zarr: Any) -> tuple[Any, str]:
    node = zarr.open(path, mode="r")
    if hasattr(node, "shape"):
        return node, {2: "yx", 3: "yxc" if node.shape[2] <= 4 else "cyx"}.get(node.ndim, "?" * node.ndim)
    described = node.attrs.get("ome", node.attrs).get("multiscales")
    if not described:
        raise DensescoreError(f"{path}: a zarr group, which must be OME-Zarr (multiscales) or be given as PATH/ARRAY")
    names = [axis["name"] if isinstance(axis, dict) else axis for axis in described[0].get("axes", "tczyx")]
    return node[described[0]["datasets"][0]["path"]], "".join(name[0] for name in names)


def _open_tiff(path: Path, tiff: Any, stack: ExitStack) -> tuple[Any, str]:
    """An array that reads windows, and the names of its axes."""
    import zarr

    level = tiff.series[0].levels[0]
    axes = level.axes.lower().replace("s", "c")
    if level.keyframe.is_memmappable and level.dataoffset is not None:
        return _Mapped(path, level.dtype.newbyteorder(tiff.byteorder), level.dataoffset, level.shape), axes
    return zarr.open_array(stack.enter_context(tiff.series[0].aszarr(level=0)), mode="r"), axes


class _Mapped:
    """Uncompressed pixels in a file; mapped anew for each window, so that what was read leaves memory again."""

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.offset, self.shape, self.ndim = path, dtype, offset, shape, len(shape)
        self.chunks = (1,) * len(shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return np.array(mapped[index], dtype=self.dtype.newbyteorder("="))


def _check_page(path: Path, page: Any) -> tuple[bool, bool, tuple[GeoTag, ...]]:
    """Whether gray is inverted, whether a fourth channel is transparency, and the GeoTIFF tags."""
    if int(page.photometric) not in (_MINISWHITE, _MINISBLACK, _RGB, _YCBCR):
        raise DensescoreError(f"{path}: colors are {page.photometric.name}; expected gray or RGB")
    alpha = any(int(kind) in (1, 2) for kind in page.extrasamples)
    tags = [page.tags[code] for code in _GEOTIFF if code in page.tags]
    geotags = tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags)
    return int(page.photometric) == _MINISWHITE, alpha, geotags


def _image(
    path: Path,
    array: Any,
    axes: str,
    bands: Sequence[int] | None,
    inverted: bool,
    alpha: bool,
    tags: tuple[GeoTag, ...],
) -> HugeImage:
    shape = dict(zip(axes, array.shape, strict=True))
    if not {"y", "x"} <= set(shape) or any(size > 1 for axis, size in shape.items() if axis not in "yxc"):
        raise DensescoreError(f"{path}: expected one image, got axes {axes!r} of {array.shape}; extract one plane")
    channels = shape.get("c", 1)
    if bands is None and not (channels in (1, 3) or (channels == 4 and alpha)):
        raise DensescoreError(f"{path}: {channels} channels: say with bands which to take as gray or RGB, e.g. 0,1,2")
    if bands is not None and (len(bands) not in (1, 3) or not all(0 <= band < channels for band in bands)):
        raise DensescoreError(f"{path}: bands must be one or three of 0..{channels - 1}, got {tuple(bands)}")
    kind = np.dtype(array.dtype).newbyteorder("=")
    if kind not in (np.uint8, np.uint16) and not np.issubdtype(kind, np.floating):
        raise DensescoreError(f"{path}: pixels are {kind}; expected uint8, uint16 or floats in [0, 1]")
    piece = int(np.prod(array.chunks)) * array.dtype.itemsize
    if piece > MOST_CHUNK:
        raise DensescoreError(
            f"{path}: stored in pieces of {piece / 1e6:,.0f} MB, which must be decoded whole: store it in tiles, "
            "e.g. with vips tiffsave --tile, or gdal_translate -co TILED=YES"
        )

    def window(rows: slice, cols: slice) -> NDArray[Any]:
        index = {"y": rows, "x": cols, "c": slice(None)}
        values = np.asarray(array[tuple(index.get(axis, 0) for axis in axes)], dtype=kind)
        kept = [axis for axis in axes if axis in index]
        values = values.transpose([kept.index(axis) for axis in "yxc" if axis in kept])  # [h, w] or [h, w, C]
        if inverted:
            values = (1 if np.issubdtype(values.dtype, np.floating) else np.iinfo(values.dtype).max) - values
        return values if bands is None or values.ndim == 2 else values[..., list(bands)]

    return HugeImage(str(path), shape["y"], shape["x"], tags, window)
